#!lua flags=allow-oom
-- Take over deliveries whose lease ran out, following the cursor so that orphans behind live leases are reached.
-- A job that was delivered before may be the one that killed its process: of each delivery number only as many are
-- kept as there is room for, the others are handed back as they were.
--
-- KEYS  1 stage stream
-- ARGV  1 consumer, 2 lease in ms, 3 most to return, 4 cursor, 5 most scans, then the room for number 2, 3, ...
-- Returns next cursor, then per entry: id, fields, number.
local consumer, lease, most, cursor = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local room = {}
for i = 6, #ARGV do room[i - 4] = tonumber(ARGV[i]) end
local out, scans = {}, 0
repeat
  local found = redis.pcall('XAUTOCLAIM', KEYS[1], 'workers', consumer, lease, cursor, 'COUNT', most - #out)
  if found.err then
    if string.find(found.err, 'NOGROUP', 1, true) then return {'0-0'} end
    return found
  end
  cursor = found[1]
  for _, entry in ipairs(found[2]) do
    local pending = redis.call('XPENDING', KEYS[1], 'workers', entry[1], entry[1], 1)
    local number = pending[1] and pending[1][4] or 1
    -- One that has used up all its deliveries (no room is kept for its number) only becomes a dead letter.
    if not room[number] or room[number] > 0 then
      if room[number] then room[number] = room[number] - 1 end
      out[#out + 1] = {entry[1], entry[2], number}
    else
      redis.call('XCLAIM', KEYS[1], 'workers', consumer, 0, entry[1], 'IDLE', lease, 'RETRYCOUNT', number - 1, 'JUSTID')
    end
  end
  scans = scans + 1
until cursor == '0-0' or #out >= most or scans >= tonumber(ARGV[5])
table.insert(out, 1, cursor)
return out
