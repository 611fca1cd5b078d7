#!lua flags=allow-oom
-- Hand deliveries back unrun: claimable at once, and the attempt does not count.
-- KEYS 1 stage stream; ARGV 1 consumer, 2 idle time to pretend in ms, then pairs of entry id and delivery number.
-- Returns how many were handed back.
local released = 0
for i = 3, #ARGV, 2 do
  local found = redis.pcall('XPENDING', KEYS[1], 'workers', ARGV[i], ARGV[i], 1, ARGV[1])
  if not found.err and #found == 1 then
    redis.call('XCLAIM', KEYS[1], 'workers', ARGV[1], 0, ARGV[i], 'IDLE', ARGV[2], 'RETRYCOUNT', ARGV[i + 1] - 1, 'JUSTID')
    released = released + 1
  end
end
return released
