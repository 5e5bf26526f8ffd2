#!lua flags=no-writes
-- KEYS: meta, board. ARGV: epoch, player.
if (redis.call('HGET', KEYS[1], 'epoch') or '1') ~= ARGV[1] then return { 'epoch' } end
local rank = redis.call('ZRANK', KEYS[2], ARGV[2])
if not rank then return { 'absent' } end
return { 'at', rank, redis.call('ZSCORE', KEYS[2], ARGV[2]) }
