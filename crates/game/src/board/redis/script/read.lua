#!lua flags=no-writes
-- KEYS: meta, board, changed, sources. ARGV: epoch, source, since, most changes, ranks...
local head = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'born', 'law', 'closed', 'floor')
local epoch = head[1] or '1'
local applied = false
if ARGV[2] ~= '' then applied = redis.call('HGET', KEYS[4], ARGV[2]) end
local answer = { epoch, head[2] or '0', head[3] or '0', head[4] or '0', head[5] or '0', '0', applied }
if epoch ~= ARGV[1] then return { answer, '0', {}, {} } end
answer[6] = redis.call('ZCARD', KEYS[2])

local all, changes = '0', {}
local since = tonumber(ARGV[3])
if since and since >= tonumber(head[6] or '0') and since <= tonumber(head[2] or '0') then
  local most = tonumber(ARGV[4])
  local players = redis.call('ZRANGE', KEYS[3], '(' .. ARGV[3], '+inf', 'BYSCORE', 'LIMIT', 0, most + 1)
  if #players <= most then
    all = '1'
    for from = 1, #players, 1000 do
      local to = math.min(from + 999, #players)
      local orders = redis.call('ZMSCORE', KEYS[2], unpack(players, from, to))
      for i = from, to do
        changes[#changes + 1] = players[i]
        changes[#changes + 1] = orders[i - from + 1]
      end
    end
  end
end

local pivots = {}
for i = 5, #ARGV do
  local at = redis.call('ZRANGE', KEYS[2], ARGV[i], ARGV[i], 'WITHSCORES')
  if at[2] then
    pivots[#pivots + 1] = ARGV[i]
    pivots[#pivots + 1] = at[2]
  end
end
return { answer, all, changes, pivots }
