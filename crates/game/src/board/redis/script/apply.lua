#!lua
-- KEYS: meta, board, changed, sources, seen, banned.
-- ARGV: epoch, law, source, from, gap, born, changed_max, sources_max, idle_s, three constants, then per record:
-- operation, epoch, player, two numbers. Without `allow-oom`, Redis refuses all of it or none.
local meta, board, changed, sources, seen, banned = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local head = redis.call('HMGET', meta, 'epoch', 'law', 'born', 'closed')
local epoch = head[1] or '1'
if epoch ~= ARGV[1] then return { 'epoch', epoch } end
if head[2] and head[2] ~= ARGV[2] then return { 'law' } end
local source, from, now = ARGV[3], tonumber(ARGV[4]), redis.call('TIME')[1]
local last = redis.call('HGET', sources, source)
if not (last and tonumber(last) >= from) and (last or '') ~= ARGV[5] then return { 'behind' } end
if not last and redis.call('HLEN', sources) >= tonumber(ARGV[8]) then
  local oldest = redis.call('ZRANGE', seen, 0, 0, 'WITHSCORES')
  if oldest[1] and tonumber(now) - tonumber(oldest[2]) < tonumber(ARGV[9]) then return { 'crowded' } end
  if oldest[1] then
    redis.call('HDEL', sources, oldest[1])
    redis.call('ZREM', seen, oldest[1])
  end
end
local born = head[3]
if not born then
  born = ARGV[6]
  redis.call('HSET', meta, 'born', born, 'law', ARGV[2], 'epoch', epoch)
elseif not head[2] then
  redis.call('HSET', meta, 'law', ARGV[2])
end

local version
local function touch(player)
  version = version or redis.call('HINCRBY', meta, 'seq', 1)
  redis.call('ZADD', changed, version, player)
end
local function write(player, order)
  local text = string.format('%.0f', order)
  redis.call('ZADD', board, text, player)
  touch(player)
  return text
end

local c1, c2, c3 = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])
local done = math.max(tonumber(last or '0') - from, 0)
if not last then done = 0 end
local records = (#ARGV - 12) / 5
local any_banned = redis.call('SCARD', banned) > 0
local fenced, barred, orders = 0, 0, {}
for i = done, records - 1 do
  local at = 13 + i * 5
  local operation, of, player, a, b = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local order = false
  if operation == 'ban' then
    any_banned = true
    redis.call('SADD', banned, player)
    if not head[4] and redis.call('ZREM', board, player) == 1 then touch(player) end
  elseif operation == 'unban' then
    redis.call('SREM', banned, player)
  elseif operation == 'skip' then
    order = false
  elseif head[4] or (of ~= '0' and of ~= epoch) then
    fenced = fenced + 1
    order = redis.call('ZSCORE', board, player)
  elseif operation == 'remove' then
    if redis.call('ZREM', board, player) == 1 then touch(player) end
  elseif any_banned and redis.call('SISMEMBER', banned, player) == 1 then
    barred = barred + 1
  elseif operation == 'best' then
    if redis.call('ZADD', board, 'LT', 'CH', a, player) == 1 then
      touch(player)
      order = a
    else
      order = redis.call('ZSCORE', board, player)
    end
  elseif operation == 'sum' then
    local old = redis.call('ZSCORE', board, player)
    local points, tick = c3, tonumber(b)
    if old then
      points = math.floor(tonumber(old) / c1)
      tick = math.max(tick, tonumber(old) - points * c1)
    end
    local sum = math.min(math.max(points + tonumber(a), 0), c2)
    if old and sum == points then
      order = old
    else
      order = write(player, sum * c1 + tick)
    end
  elseif operation == 'decay' then
    local old, gain = redis.call('ZSCORE', board, player), tonumber(a)
    if old then
      local log = c1 - tonumber(old)
      local high, low = math.max(log, gain), math.min(log, gain)
      local more = math.log(1 + math.pow(2, -((high - low) / c2))) / c3
      gain = math.min(high + math.floor(0.5 + c2 * more), c1)
    end
    order = write(player, c1 - gain)
  end
  orders[#orders + 1] = order or ''
end

local reached = string.format('%.0f', math.max(from + records, tonumber(last or '0')))
redis.call('HSET', sources, source, reached)
redis.call('ZADD', seen, now, source)
local over = version and redis.call('ZCARD', changed) - tonumber(ARGV[7]) or 0
if over > 0 then
  local cut = redis.call('ZRANGE', changed, over - 1, over - 1, 'WITHSCORES')
  redis.call('ZREMRANGEBYRANK', changed, 0, over - 1)
  redis.call('HSET', meta, 'floor', cut[2])
end
return { 'ok', reached, born, tostring(fenced), tostring(barred), orders }
