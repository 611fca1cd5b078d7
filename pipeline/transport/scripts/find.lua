#!lua flags=allow-oom
-- Find a batch's jobs, waiting, in flight or put off; all at one moment, so that none hides on its way between two places.
-- KEYS  1 the stream of the batch's answers, then as many stage streams as delayed sets
-- ARGV  1 what ids of the batch's jobs begin with, 2 entries to look at in one piece
-- Returns the id of the last answer there is, then the ids of the jobs.
local answers = redis.pcall('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local found = {answers[1] and answers[1][1] or '0-0'}

-- The header is what comes first, so nothing that a client wrote is found before the id.
local function look(text)
  local _, last = string.find(text, ARGV[1], 1, true)
  local rest = last and string.match(text, '^[%d.-]+', last + 1)
  if rest then found[#found + 1] = ARGV[1] .. rest end
end

local function header(fields)
  for at = 1, #fields, 2 do
    if fields[at] == 'h' then return fields[at + 1] end
  end
  return ''
end

local stages = (#KEYS - 1) / 2
for at = 2, 1 + stages do
  local from = '-'
  repeat
    local entries = redis.call('XRANGE', KEYS[at], from, '+', 'COUNT', ARGV[2])
    for _, entry in ipairs(entries) do look(header(entry[2])) end
    if #entries > 0 then from = '(' .. entries[#entries][1] end
  until #entries < tonumber(ARGV[2])
end
for at = 2 + stages, #KEYS do
  local from = 0
  repeat
    local members = redis.call('ZRANGE', KEYS[at], from, from + ARGV[2] - 1)
    for _, member in ipairs(members) do look(member) end
    from = from + #members
  until #members < tonumber(ARGV[2])
end
return found
