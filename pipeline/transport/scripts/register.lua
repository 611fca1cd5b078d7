#!lua flags=allow-oom
-- Renew a process's registration, also in a full server: who seems gone has its jobs dropped.
-- KEYS 1 up:<consumer>, 2 consumers; ARGV 1 consumer, 2 now, 3 lifetime in ms, 4 process, 5 metrics.
-- Returns the registered names, each with the end of its registration.
redis.call('HSET', KEYS[1], 'p', ARGV[4], 'm', ARGV[5])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('ZADD', KEYS[2], ARGV[2] + ARGV[3], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[2])
return redis.call('ZRANGE', KEYS[2], 0, -1, 'WITHSCORES')
