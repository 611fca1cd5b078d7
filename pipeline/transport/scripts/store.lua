#!lua flags=allow-oom
-- Store a worker's large body in a full server, where SET is refused: only settling frees memory.
-- KEYS 1 body; ARGV 1 bytes, 2 lifetime in ms.
return redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
