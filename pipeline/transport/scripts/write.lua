#!lua flags=allow-oom
-- Apply a group of writes of one worker process, in order: first frames, frames, settlements.
-- Only the owner of a delivery settles it or starts its stream; a late zombie changes nothing.
--
-- KEYS  every key the writes below name, so that a cluster can route the script
-- ARGV  1 consumer, then writes one after another, each after the count of its arguments; K is an index into KEYS:
--   F K data                                      frames for a reply stream
--   O K id  K ttl  K data                         first frame: stream, entry; streamed mark, its ttl; reply stream
--   S K K id size K|0 <effect>                    settle: stream, byte counter, entry, body to unlink
--   U K ttl header kind body                      a reply without a fence (the group was lost)
-- effects
--   N                                             nothing
--   W K K header kind body size                   forward: stream, byte counter
--   R K ttl header kind body                      reply
--   Z K due member                                defer
--   D K limit count f1 v1 ... K|0 ttl header kind body    dead letter, then its error reply
-- Returns one number per write: 1 done, 0 stale (not the owner any more), -1 no group, -2 nobody listens; or the error
-- of a write that failed, which keeps none of the others from being done.
local at, consumer, out = 2, ARGV[1], {}

local function take()
  at = at + 1
  return ARGV[at - 1]
end

local function key()
  return KEYS[tonumber(take())]
end

local function owned(stream, id)
  local found = redis.pcall('XPENDING', stream, 'workers', id, id, 1, consumer)
  if found.err then
    if string.find(found.err, 'NOGROUP', 1, true) then return -1 end
    error(found)
  end
  return #found
end

local function reply(stream, ttl, header, kind, body)
  if stream then
    redis.call('XADD', stream, '*', 't', header, kind, body)
    redis.call('PEXPIRE', stream, ttl, 'NX')
  end
end

local function dead_letter(stream, limit, fields)
  redis.call('XADD', stream, 'MAXLEN', '~', limit, '*', unpack(fields))
end

-- Every effect takes its arguments first and applies them only when `apply`: a stale settle must still be parsed.
local effects = {
  N = function() end,
  W = function(apply)
    local stream, counter, header, kind, body, size = key(), key(), take(), take(), take(), take()
    if apply then
      redis.call('XADD', stream, '*', 'h', header, 's', size, kind, body)
      redis.call('INCRBY', counter, size)
    end
  end,
  R = function(apply)
    local stream, ttl, header, kind, body = key(), take(), take(), take(), take()
    if apply then reply(stream, ttl, header, kind, body) end
  end,
  Z = function(apply)
    local delayed, due, member = key(), take(), take()
    if apply then redis.call('ZADD', delayed, due, member) end
  end,
  D = function(apply)
    local stream, limit, count, fields = key(), take(), tonumber(take()), {}
    for i = 1, count do fields[i] = take() end
    local target, ttl, header, kind, body = key(), take(), take(), take(), take()
    if apply then
      dead_letter(stream, limit, fields)
      reply(target, ttl, header, kind, body)
    end
  end,
}

local writes = {
  F = function()
    local stream, data = key(), take()
    return redis.call('XADD', stream, 'NOMKSTREAM', '*', 'f', data) and 1 or -2
  end,
  O = function()
    local stream, id, mark, ttl, target, data = key(), take(), key(), take(), key(), take()
    local owner = owned(stream, id)
    if owner ~= 1 then return owner end
    redis.call('SET', mark, '1', 'PX', ttl)
    return redis.call('XADD', target, 'NOMKSTREAM', '*', 'f', data) and 1 or -2
  end,
  S = function()
    local stream, counter, id, size, body = key(), key(), take(), take(), key()
    local owner = owned(stream, id)
    effects[take()](owner == 1)
    if owner == 1 then
      redis.call('XACK', stream, 'workers', id)
      redis.call('XDEL', stream, id)
      if redis.call('DECRBY', counter, size) <= 0 or redis.call('XLEN', stream) == 0 then redis.call('DEL', counter) end
      if body then redis.call('UNLINK', body) end
    end
    return owner
  end,
  U = function()
    local stream, ttl, header, kind, body = key(), take(), take(), take(), take()
    reply(stream, ttl, header, kind, body)
    return 1
  end,
}

while at <= #ARGV do
  local after = at + 1 + tonumber(ARGV[at])
  at = at + 1
  local done, answer = pcall(writes[take()])
  if not done then answer = type(answer) == 'table' and answer.err or tostring(answer) end
  out[#out + 1] = answer
  at = after
end
return out
