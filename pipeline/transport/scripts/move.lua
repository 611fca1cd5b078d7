#!lua flags=allow-oom
-- Move delayed jobs that are due onto their stage's stream.
-- KEYS 1 delayed set, 2 stage stream, 3 byte counter; ARGV 1 most to move. Returns how many were moved.
-- A member is: length of the header in 8 digits, header, kind of body (b or r), size in 10 digits, body or reference.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
for _, member in ipairs(due) do
  local length = tonumber(string.sub(member, 1, 8))
  local header = string.sub(member, 9, 8 + length)
  local kind = string.sub(member, 9 + length, 9 + length)
  local size = tonumber(string.sub(member, 10 + length, 19 + length))
  redis.call('XADD', KEYS[2], '*', 'h', header, 's', size, kind, string.sub(member, 20 + length))
  redis.call('INCRBY', KEYS[3], size)
  redis.call('ZREM', KEYS[1], member)
end
return #due
