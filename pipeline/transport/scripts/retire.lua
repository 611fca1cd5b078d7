#!lua flags=allow-oom
-- Remove consumers that are gone and hold nothing (XGROUP DELCONSUMER drops what is pending, so look first).
-- KEYS 1 stage stream; ARGV consumer names. Returns how many were removed.
local removed = 0
for _, name in ipairs(ARGV) do
  local pending = redis.pcall('XPENDING', KEYS[1], 'workers', '-', '+', 1, name)
  if not pending.err and #pending == 0 then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], 'workers', name)
    removed = removed + 1
  end
end
return removed
