#!lua flags=allow-oom
-- Find a batch's jobs in a stage, a piece at a time; with the last piece, at one moment, those that are put off: none
-- hides on its way between the two, for whatever is added to the stream comes after what was looked at.
-- KEYS  1 the stream of the batch's answers, 2 the stage's stream, 3 its delayed set
-- ARGV  1 what ids of the batch's jobs begin with, 2 where in the stream to begin, 3 entries to look at in one piece
-- Returns where to go on, '' after the last piece; the id of the last answer there is; then the ids of the jobs.
local answers = redis.pcall('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local found = {'', answers[1] and answers[1][1] or '0-0'}

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

local count = tonumber(ARGV[3])
local entries = redis.call('XRANGE', KEYS[2], ARGV[2], '+', 'COUNT', count)
for _, entry in ipairs(entries) do look(header(entry[2])) end
if #entries == count then
  found[1] = '(' .. entries[count][1]
  return found
end
local from = 0
repeat
  local members = redis.call('ZRANGE', KEYS[3], from, from + count - 1)
  for _, member in ipairs(members) do look(member) end
  from = from + #members
until #members < count
return found
