#!lua flags=allow-oom
-- Make the consumer groups of streams, from their beginning; also in a full server, whose workers must get at its jobs.
-- KEYS stage streams. Returns 1 for each group that was made, 0 for one that was there.
local made = {}
for i, stream in ipairs(KEYS) do
  local reply = redis.pcall('XGROUP', 'CREATE', stream, 'workers', '0', 'MKSTREAM')
  if type(reply) == 'table' and reply.err and not string.find(reply.err, 'BUSYGROUP', 1, true) then return reply end
  made[i] = type(reply) == 'table' and reply.err and 0 or 1
end
return made
