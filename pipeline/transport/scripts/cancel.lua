#!lua flags=allow-oom
-- Cancel jobs, also in a full server. KEYS 1 cancel stream; ARGV 1 oldest entry to keep in ms, then id, deadline pairs.
for i = 2, #ARGV, 2 do
  redis.call('XADD', KEYS[1], 'MINID', '~', ARGV[1], '*', 'i', ARGV[i], 'd', ARGV[i + 1])
end
return (#ARGV - 1) / 2
