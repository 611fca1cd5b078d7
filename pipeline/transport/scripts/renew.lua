#!lua flags=allow-oom
-- Renew the leases of deliveries this consumer still owns; JUSTID, so that it does not count as a delivery.
-- KEYS 1 stage stream; ARGV 1 consumer, then entry ids. Returns the ids that are not ours any more.
local lost, mine = {}, {}
for i = 2, #ARGV do
  local found = redis.pcall('XPENDING', KEYS[1], 'workers', ARGV[i], ARGV[i], 1, ARGV[1])
  -- Without the group nobody else owns it either: the next read makes the group anew, and the work goes on.
  if #found > 0 then mine[#mine + 1] = ARGV[i] elseif not found.err then lost[#lost + 1] = ARGV[i] end
end
if #mine > 0 then
  local command = {'XCLAIM', KEYS[1], 'workers', ARGV[1], '0'}
  for _, id in ipairs(mine) do command[#command + 1] = id end
  command[#command + 1] = 'JUSTID'
  redis.call(unpack(command))
end
return lost
