#!lua flags=no-writes
-- KEYS: meta, board. ARGV: epoch, player, radius.
if (redis.call('HGET', KEYS[1], 'epoch') or '1') ~= ARGV[1] then return { 'epoch' } end
local rank = redis.call('ZRANK', KEYS[2], ARGV[2])
if not rank then return { 'absent' } end
local radius = tonumber(ARGV[3])
local first = math.max(rank - radius, 0)
return { 'at', first, redis.call('ZRANGE', KEYS[2], first, rank + radius, 'WITHSCORES') }
