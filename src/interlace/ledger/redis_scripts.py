"""What the limits of plans do at a Redis or Valkey server: one script for each question, which is one step there.

A window is a hash, second → how much was counted in it, as `limits.Window` keeps it; it is gone a minute after its last
use. What runs is a hash, token → how many; what is of a token that is not heard of any more counts as nothing.

The first word of each is the moment in seconds, for tests; left empty, it is the server's own clock. One that is set
back counts what lies ahead of it as of now. Answers are words in one line, numbers as Lua's `%.17g` has them.
"""

from __future__ import annotations

from interlace.ledger.limits import WINDOW_SECONDS
from interlace.redis_link import LEASE_SECONDS, Script

_DAY_MS = 86_400_000

_WINDOW = f"""
local OLDEST = {WINDOW_SECONDS}
local function clock(given)
  if given ~= '' then return tonumber(given) end
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end
local function window(key, now)
  local w = {{key = key, now = now, second = math.floor(now), seconds = {{}}, amounts = {{}}, sum = 0}}
  local gone, ahead = {{}}, 0
  local all = redis.call('HGETALL', key)
  for i = 1, #all, 2 do
    local at, amount = tonumber(all[i]), tonumber(all[i + 1])
    if at < w.second - OLDEST then
      gone[#gone + 1] = all[i]
    elseif at > w.second then
      gone[#gone + 1] = all[i]
      ahead = ahead + amount
    else
      w.seconds[#w.seconds + 1] = at
      w.amounts[at] = amount
      w.sum = w.sum + amount
    end
  end
  if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
  table.sort(w.seconds)
  return w, ahead
end
local function add(w, amount)
  redis.call('HINCRBY', w.key, string.format('%.0f', w.second), string.format('%.0f', amount))
  redis.call('EXPIRE', w.key, OLDEST + 2)
  if not w.amounts[w.second] then
    w.seconds[#w.seconds + 1] = w.second
    w.amounts[w.second] = 0
  end
  w.amounts[w.second] = w.amounts[w.second] + amount
  w.sum = w.sum + amount
end
local function open(key, now)
  local w, ahead = window(key, now)
  if ahead > 0 then add(w, ahead) end
  return w
end
local function wait(w, amount, most)
  local excess = w.sum + amount - most
  for _, at in ipairs(w.seconds) do
    excess = excess - w.amounts[at]
    if excess <= 0 then return at + OLDEST + 1 - w.now end
  end
  return OLDEST
end
local function left(w)
  local empty = 0
  if w.sum > 0 then empty = w.seconds[#w.seconds] + OLDEST + 1 - w.now end
  return string.format('%.0f %.17g', w.sum, empty)
end
local function say(...)
  return redis.status_reply(string.format(...))
end
"""

_RUNNING = f"""
local function running(key, alive)
  local oldest = tonumber(redis.call('TIME')[1]) - {LEASE_SECONDS:.0f}
  local all, sum, gone = redis.call('HGETALL', key), 0, {{}}
  for i = 1, #all, 2 do
    local heard = redis.call('ZSCORE', alive, all[i])
    if not heard then
      gone[#gone + 1] = all[i]
    elseif tonumber(heard) >= oldest then
      sum = sum + tonumber(all[i + 1])
    end
  end
  if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
  return sum
end
"""

# keys: requests, running, alive. words: now, most requests or '', most at once or '', 'idle' or '', token
BEGIN = Script(
    _WINDOW
    + _RUNNING
    + f"""
if not redis.call('ZSCORE', KEYS[3], ARGV[5]) then return say('?') end
local runs, said = 0, '0 0'
if ARGV[3] ~= '' then
  runs = running(KEYS[2], KEYS[3])
  local most = tonumber(ARGV[3])
  local full = runs >= most
  if ARGV[4] ~= '' then full = 2 * runs > most end
  if full then return say('concurrency %.0f', runs) end
end
if ARGV[2] ~= '' then
  local w, most = open(KEYS[1], clock(ARGV[1])), tonumber(ARGV[2])
  if w.sum + 1 > most then return say('requests %s %.17g', left(w), wait(w, 1, most)) end
  add(w, 1)
  said = left(w)
end
if ARGV[3] ~= '' and ARGV[4] == '' then
  redis.call('HINCRBY', KEYS[2], ARGV[5], 1)
  redis.call('PEXPIRE', KEYS[2], {_DAY_MS})
end
return say('ok %s', said)
"""
)

# keys: running. words: token
END = Script("""
if redis.call('HINCRBY', KEYS[1], ARGV[1], -1) <= 0 then redis.call('HDEL', KEYS[1], ARGV[1]) end
return redis.status_reply('ok')
""")

# keys: running, alive. words: token, how many it runs
STATE = Script(f"""
if redis.call('ZSCORE', KEYS[2], ARGV[1]) then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
  redis.call('PEXPIRE', KEYS[1], {_DAY_MS})
end
return redis.status_reply('ok')
""")

# keys: a window. words: now, amount, most or ''
TAKE = Script(
    _WINDOW
    + """
local w, amount = open(KEYS[1], clock(ARGV[1])), tonumber(ARGV[2])
if ARGV[3] ~= '' and w.sum + amount > tonumber(ARGV[3]) then
  return say('no %s %.17g', left(w), wait(w, amount, tonumber(ARGV[3])))
end
add(w, amount)
return say('ok %s %.0f', left(w), w.second)
"""
)

# keys: a window. words: now, amount, the second it was counted at or '': it is uncounted there, but not below nothing
BACK = Script(
    _WINDOW
    + """
local w = open(KEYS[1], clock(ARGV[1]))
local at = tonumber(ARGV[3]) or w.second
if w.amounts[at] then
  local back = math.min(tonumber(ARGV[2]), w.amounts[at])
  redis.call('HINCRBY', KEYS[1], string.format('%.0f', at), string.format('%.0f', -back))
  w.amounts[at] = w.amounts[at] - back
  w.sum = w.sum - back
end
return say('ok %s', left(w))
"""
)

# keys: requests, tokens, running, alive. words: now
LOOK = Script(
    _WINDOW
    + _RUNNING
    + """
local now = clock(ARGV[1])
return say('%s %s %.0f', left(open(KEYS[1], now)), left(open(KEYS[2], now)), running(KEYS[3], KEYS[4]))
"""
)
