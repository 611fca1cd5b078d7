#!lua flags=allow-oom
-- Apply a group of writes of one worker process, in order: first frames, frames, settlements.
-- Only the owner of a delivery settles it or starts its stream; a late zombie changes nothing.
--
-- KEYS  every key the writes below name, so that a cluster can route the script
-- ARGV  1 consumer, then writes one after another, each after the count of its arguments; K is an index into KEYS:
--   F K data                                      frames for a reply stream
--   O K id  K ttl  K data                         first frame: stream, entry; streamed mark, its ttl; reply stream
--   S K K id size K|0 K|0 <effect>                settle: stream, byte counter, entry, body and streamed mark to unlink
--   U K ttl header kind body                      a reply without a fence (the group was lost)
-- effects
--   N                                             nothing
--   W K K header kind body size                   forward: stream, byte counter
--   R K ttl header kind body                      reply
--   Z K due limit member K|0 ttl header kind body         defer, or the reply when the set is full
--   D K limit count f1 v1 ... K|0 ttl header kind body    dead letter, then its error reply
-- Returns one number per write: 1 done, 0 stale (not the owner any more), -1 no group, -2 nobody listens; or the error
-- of a write that failed, which keeps none of the others from being done.
local consumer, out = ARGV[1], {}
local settled, grown, unlinked, lasting = {}, {}, {}, {}

local function key(at)
  return KEYS[tonumber(ARGV[at])]
end

local function owned(stream, id)
  local found = redis.pcall('XPENDING', stream, 'workers', id, id, 1, consumer)
  if found.err then
    if string.find(found.err, 'NOGROUP', 1, true) then return -1 end
    error(found)
  end
  return #found
end

-- Arguments from `at`: K|0 ttl header kind body.
local function reply(at)
  local stream = key(at)
  if not stream then return end
  redis.call('XADD', stream, '*', 't', ARGV[at + 2], ARGV[at + 3], ARGV[at + 4])
  if not lasting[stream] then
    redis.call('PEXPIRE', stream, ARGV[at + 1], 'NX')
    lasting[stream] = true
  end
end

local function grow(counter, size)
  grown[counter] = (grown[counter] or 0) + size
end

local effects = {
  N = function() end,
  R = reply,
  W = function(at)
    redis.call('XADD', key(at), '*', 'h', ARGV[at + 2], 's', ARGV[at + 5], ARGV[at + 3], ARGV[at + 4])
    grow(key(at + 1), tonumber(ARGV[at + 5]))
  end,
  Z = function(at)
    if redis.call('ZCARD', key(at)) < tonumber(ARGV[at + 2]) then
      redis.call('ZADD', key(at), ARGV[at + 1], ARGV[at + 3])
    else
      reply(at + 4)
    end
  end,
  D = function(at)
    local count, fields = tonumber(ARGV[at + 2]), {}
    for i = 1, count do fields[i] = ARGV[at + 2 + i] end
    redis.call('XADD', key(at), 'MAXLEN', '~', ARGV[at + 1], '*', unpack(fields))
    reply(at + 3 + count)
  end,
}

local writes = {
  F = function(at)
    return redis.call('XADD', key(at), 'NOMKSTREAM', '*', 'f', ARGV[at + 1]) and 1 or -2
  end,
  O = function(at)
    local owner = owned(key(at), ARGV[at + 1])
    if owner ~= 1 then return owner end
    redis.call('SET', key(at + 2), '1', 'PX', ARGV[at + 3])
    return redis.call('XADD', key(at + 4), 'NOMKSTREAM', '*', 'f', ARGV[at + 5]) and 1 or -2
  end,
  S = function(at)
    local stream, id = key(at), ARGV[at + 2]
    local owner = owned(stream, id)
    if owner ~= 1 then return owner end
    effects[ARGV[at + 6]](at + 7)
    local ids = settled[stream]
    if not ids then
      ids = {counter = key(at + 1)}
      settled[stream] = ids
    end
    ids[#ids + 1] = id
    grow(ids.counter, -tonumber(ARGV[at + 3]))
    unlinked[#unlinked + 1] = key(at + 4)
    unlinked[#unlinked + 1] = key(at + 5)
    return 1
  end,
  U = function(at)
    reply(at)
    return 1
  end,
}

local at = 2
while at <= #ARGV do
  local done, answer = pcall(writes[ARGV[at + 1]], at + 2)
  if not done then answer = type(answer) == 'table' and answer.err or tostring(answer) end
  out[#out + 1] = answer
  at = at + 1 + tonumber(ARGV[at])
end

-- What every settlement of a stream needs is done once for all of them: a call costs more than what it does.
-- An error here would have all of the above written once more, by whoever sends the group again.
for counter, size in pairs(grown) do
  local held = redis.pcall('INCRBY', counter, size)
  if type(held) ~= 'number' or held <= 0 then redis.call('DEL', counter) end
end
for stream, ids in pairs(settled) do
  redis.call('XACK', stream, 'workers', unpack(ids))
  redis.call('XDEL', stream, unpack(ids))
  if redis.call('XLEN', stream) == 0 then redis.call('DEL', ids.counter) end
end
if #unlinked > 0 then redis.call('UNLINK', unpack(unlinked)) end
return out
