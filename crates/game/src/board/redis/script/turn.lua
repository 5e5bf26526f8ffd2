#!lua
-- KEYS: meta, board, changed, ... ARGV: epoch, law, reset or close, keep_s, born, the last epoch there can be.
local head = redis.call('HMGET', KEYS[1], 'epoch', 'law', 'born', 'closed')
local epoch = head[1] or '1'
if head[2] and head[2] ~= ARGV[2] then return { 'law' } end
if head[4] then return { 'closed' } end
if epoch ~= ARGV[1] then return { 'epoch', epoch } end
if ARGV[3] == 'reset' and tonumber(epoch) >= tonumber(ARGV[6]) then return { 'last' } end
if not head[3] then redis.call('HSET', KEYS[1], 'born', ARGV[5], 'law', ARGV[2], 'epoch', epoch) end
local seq = redis.call('HINCRBY', KEYS[1], 'seq', 1)
if ARGV[3] == 'close' then
  redis.call('HSET', KEYS[1], 'closed', '1')
  return { 'ok', epoch, tostring(seq) }
end
local next = string.format('%.0f', tonumber(epoch) + 1)
redis.call('HSET', KEYS[1], 'epoch', next, 'floor', seq)
redis.call('UNLINK', KEYS[3])
if tonumber(ARGV[4]) > 0 then redis.call('EXPIRE', KEYS[2], ARGV[4]) end
return { 'ok', next, tostring(seq) }
