-- wrk's script: post one chat body over and over, with the keys of a file in turn, until BENCH_SECONDS are over; then let
-- every request that runs be answered, and stop. So what was answered is exactly what was asked, to the last request.

local ffi = require("ffi")
ffi.cdef([[
  typedef struct { long seconds, nanos; } moment;
  int clock_gettime(int clock, moment *now);
  int kill(int pid, int sig);
  int getpid(void);
]])

local seconds = tonumber(os.getenv("BENCH_SECONDS"))
local connections = tonumber(os.getenv("BENCH_CONNECTIONS"))
local requests, turn, threads = {}, 0, {}
local clock = ffi.new("moment[1]")
asked, answered, began, ended = 0, -connections, 0, 0

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  local file = io.open(os.getenv("BENCH_BODY"))
  local body = file:read("*a")
  file:close()
  for line in io.lines(os.getenv("BENCH_HEADERS")) do  -- a line: name, tab, value, tab, name, ... of one caller
    local headers, name = { ["Content-Type"] = "application/json" }, nil
    for word in line:gmatch("[^\t]+") do
      if name then headers[name], name = word, nil else name = word end
    end
    table.insert(requests, wrk.format("POST", nil, headers, body))
  end
  if #requests == 1 then
    local only = requests[1]
    request = function() return only end
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

-- Asked before each request of a connection, so after each answer too: milliseconds to wait.
function delay()
  ffi.C.clock_gettime(1, clock)
  ended = tonumber(clock[0].seconds) + tonumber(clock[0].nanos) / 1e9
  if began == 0 then began = ended end
  answered = answered + 1  -- from less than nothing: each connection comes here once before its first request
  if ended - began < seconds then
    asked = asked + 1
    return 0
  end
  if answered == asked then ffi.C.kill(ffi.C.getpid(), 2) end  -- wrk ends, and tells
  return 3600000
end

function done(summary, latency, rates)
  local errors, one = summary.errors, threads[1]
  io.write(string.format(
    'BENCH {"asked": %d, "answered": %d, "recorded": %d, "seconds": %.6f, "p50_ms": %.4f, "p99_ms": %.4f, ' ..
    '"refused": %d, "broken": %d}\n',
    one:get("asked"), one:get("answered"), summary.requests, one:get("ended") - one:get("began"),
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout))
end
