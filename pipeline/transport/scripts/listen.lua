#!lua flags=allow-oom
-- See that a reply stream exists and lives on. KEYS 1 reply stream; ARGV 1 lifetime in ms.
-- Returns 1 when it had to be made: whatever was in it before is gone. What is no stream is not ours.
local made = redis.call('EXISTS', KEYS[1]) == 0 or type(redis.pcall('XLEN', KEYS[1])) ~= 'number'
if made then
  redis.call('DEL', KEYS[1])
  redis.call('XADD', KEYS[1], '*', 'o', '')
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return made and 1 or 0
