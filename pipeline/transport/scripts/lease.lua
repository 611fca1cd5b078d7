#!lua flags=allow-oom
-- Take a lease that nobody has, also in a full server: who owns a batch collects its answers, and so frees memory.
-- KEYS 1 lease; ARGV 1 its holder, 2 lifetime in ms. Returns OK, or nil when somebody has it.
return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])
