#!lua flags=allow-oom
-- Cancel jobs, also in a full server.
-- KEYS 1 cancel stream; ARGV 1 oldest entry to keep in ms, 2 most entries to keep, then id, deadline pairs.
for i = 3, #ARGV, 2 do
  redis.call('XADD', KEYS[1], 'MINID', '~', ARGV[1], '*', 'i', ARGV[i], 'd', ARGV[i + 1])
end
redis.call('XTRIM', KEYS[1], 'MAXLEN', '~', ARGV[2])
return (#ARGV - 2) / 2
