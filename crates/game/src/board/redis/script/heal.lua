#!lua
-- KEYS: meta. ARGV: epoch, seq, born.
local head = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'born')
if not head[3] then redis.call('HSET', KEYS[1], 'born', ARGV[3]) end
local epoch, seen = tonumber(head[1] or '1'), tonumber(ARGV[1])
if epoch < seen then redis.call('HSET', KEYS[1], 'epoch', ARGV[1]) end
if epoch <= seen and tonumber(head[2] or '0') <= tonumber(ARGV[2]) then
  local seq = string.format('%.0f', tonumber(ARGV[2]) + 1)
  redis.call('HSET', KEYS[1], 'seq', seq, 'floor', seq)
end
return { 'ok' }
