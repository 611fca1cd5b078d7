#!lua flags=allow-oom
-- Move delayed jobs that are due onto their stage's stream.
-- KEYS 1 delayed set, 2 stage stream, 3 byte counter; ARGV 1 most to move. Returns how many were moved.
-- A member is: length of the header in 8 digits, header, kind of body (b or r), size in 10 digits, body or reference.
-- One that is not becomes an unreadable entry: the stage makes a dead letter of it.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
for _, member in ipairs(due) do
  local length = tonumber(string.match(member, '^%d%d%d%d%d%d%d%d') or '-1')
  local kind, size = string.match(member, '^([br])(%d%d%d%d%d%d%d%d%d%d)', math.max(1, 9 + length))
  if length >= 0 and kind then
    local header, rest = string.sub(member, 9, 8 + length), string.sub(member, 20 + length)
    redis.call('XADD', KEYS[2], '*', 'h', header, 's', tonumber(size), kind, rest)
    if type(redis.pcall('INCRBY', KEYS[3], tonumber(size))) ~= 'number' then
      redis.call('SET', KEYS[3], tonumber(size))  -- what was there is not ours
    end
  else
    redis.call('XADD', KEYS[2], '*', 'x', member)
  end
  redis.call('ZREM', KEYS[1], member)
end
return #due
