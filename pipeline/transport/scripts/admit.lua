#!lua
-- Put a batch of jobs on their first stages' streams, once, and say how full every stage is.
-- Not allow-oom: a full server refuses new work while its workers drain it.
--
-- KEYS  1 admitted:<ingress>, then pairs of stage stream and its byte counter
-- ARGV  1 batch number, 2 lifetime of that number in ms, 3 count of jobs, then per job:
--       index of its stream in the pairs (from 1), header, body, reference ('' without), bytes
-- Returns the number remembered so far (lower than the client knows: the server lost data), entry ids ('' for a
-- batch that was admitted before), then backlog and bytes of each pair.
local batch, count = tonumber(ARGV[1]), tonumber(ARGV[3])

-- What is no number counts as none: it is not ours, and must not stop who asks.
local function number(key)
  local found = redis.pcall('GET', key)
  return type(found) == 'string' and tonumber(found) or 0
end

local last = number(KEYS[1])
local reply = {last}
local fresh = count > 0 and batch > last
if fresh then
  redis.call('SET', KEYS[1], batch, 'PX', ARGV[2])
else
  redis.call('PEXPIRE', KEYS[1], ARGV[2])  -- or who admits nothing for long would take it for a loss
end
local grown = {}
for job = 0, count - 1 do
  local at = 4 + job * 5
  if fresh then
    local pair = tonumber(ARGV[at]) * 2
    local body = ARGV[at + 3] == '' and {'b', ARGV[at + 2]} or {'r', ARGV[at + 3]}
    reply[#reply + 1] = redis.call('XADD', KEYS[pair], '*', 'h', ARGV[at + 1], 's', ARGV[at + 4], body[1], body[2])
    grown[pair + 1] = (grown[pair + 1] or 0) + tonumber(ARGV[at + 4])
  else
    reply[#reply + 1] = ''
  end
end
for counter, size in pairs(grown) do
  if type(redis.pcall('INCRBY', KEYS[counter], size)) ~= 'number' then
    redis.call('SET', KEYS[counter], size)
  end
end
for pair = 2, #KEYS, 2 do
  local pending = redis.pcall('XPENDING', KEYS[pair], 'workers')
  local held = pending.err and 0 or pending[1]
  local length = redis.call('XLEN', KEYS[pair])
  reply[#reply + 1] = length - held
  reply[#reply + 1] = length == 0 and 0 or number(KEYS[pair + 1])
end
return reply
