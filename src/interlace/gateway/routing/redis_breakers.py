"""Breakers that the workers of several machines share, on a Redis or Valkey server: failures of all count, a model that
one machine takes for broken is so for all within a second, and of all their requests one probes it.

A worker goes by what the server last said of a breaker, and asks it only where something happens: a failure, the end of
one, a probe. While the server is away, and of what it does not know, this machine's own breaker decides.

    interlace:breakers             the digests of those of which something is known
    interlace:breaker:DIGEST       when it opened, in milliseconds, and the token of who probes; see `redis_link`
    interlace:failures:DIGEST      the moments of the last failures
"""

from __future__ import annotations

import hashlib
import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import msgspec

from interlace.config import BreakerSettings, ModelSettings
from interlace.gateway.routing.facts import BreakerState
from interlace.gateway.routing.live import AnyBreaker, Clock
from interlace.redis_link import ALIVE, LEASE_SECONDS, PREFIX, RedisAway, RedisLink, Script

AT_HOME = ("ollama", "vllm")  # these are asked at 127.0.0.1 unless `base_url` says otherwise
INDEX = PREFIX + "breakers"
_DAY_MS = 86_400_000  # of one that nobody asks for any more nothing is left after a day

_COMMON = f"""
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local function probed(breaker, alive)
  local prober = redis.call('HGET', breaker, 'prober')
  local heard = prober and redis.call('ZSCORE', alive, prober)
  return heard and tonumber(heard) >= tonumber(time[1]) - {LEASE_SECONDS:.0f}
end
local function opened(breaker)
  local at = tonumber(redis.call('HGET', breaker, 'opened') or '')
  if at and at > now then  -- the clock was set back
    at = now
    redis.call('HSET', breaker, 'opened', string.format('%.0f', at))
  end
  return at
end
local function say(kind, at)
  return redis.status_reply(string.format('%s %.0f', kind, at and now - at or -1))
end
"""

# keys: breaker, failures, index. words: digest, failures that open it, within so many ms, 'probe' or ''
FAILED = Script(
    _COMMON
    + f"""
local at, most = opened(KEYS[1]), tonumber(ARGV[2])
redis.call('SADD', KEYS[3], ARGV[1])
if ARGV[4] ~= '' then
  at = now
  redis.call('HDEL', KEYS[1], 'prober')
elseif most > 0 then
  redis.call('LPUSH', KEYS[2], string.format('%.0f', now))
  redis.call('LTRIM', KEYS[2], 0, most - 1)
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
  local oldest = redis.call('LINDEX', KEYS[2], most - 1)
  if not at and oldest and tonumber(oldest) > now - tonumber(ARGV[3]) then at = now end
end
if not at then return say('closed') end
redis.call('HSET', KEYS[1], 'opened', string.format('%.0f', at))
redis.call('PEXPIRE', KEYS[1], {_DAY_MS})
return say('open', at)
"""
)

# keys: breaker, alive. words: token, how many ms it is open
CLAIM = Script(
    _COMMON
    + """
local at = opened(KEYS[1])
if not at then return say('closed') end
if now < at + tonumber(ARGV[2]) then return say('open', at) end
if probed(KEYS[1], KEYS[2]) then return say('probing', at) end
redis.call('HSET', KEYS[1], 'prober', ARGV[1])
return say('yours', at)
"""
)

# keys: breaker. words: token
LEFT = Script("""
if redis.call('HGET', KEYS[1], 'prober') == ARGV[1] then redis.call('HDEL', KEYS[1], 'prober') end
return redis.status_reply('ok')
""")

# keys: breaker, failures, index. words: digest
SUCCEEDED = Script("""
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('SREM', KEYS[3], ARGV[1])
return redis.status_reply('ok')
""")

# keys: index, alive. words: how the others' names begin. Gives digest, age in ms or -1, 'probing' or '-', of each
LOOK = Script(
    _COMMON
    + """
local said = {}
for _, digest in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local breaker, failures = ARGV[1] .. digest, ARGV[2] .. digest
  local at = opened(breaker)
  if at then
    said[#said + 1] = string.format('%s %.0f %s', digest, now - at, probed(breaker, KEYS[2]) and 'probing' or '-')
  elseif redis.call('EXISTS', failures) == 1 then
    said[#said + 1] = digest .. ' -1 -'
  else
    redis.call('SREM', KEYS[1], digest)
  end
end
return table.concat(said, ' ')
"""
)


def is_of_this_machine(model: ModelSettings) -> bool:
    """Whether a model is asked on the machine itself: then it says nothing of the same name on another."""
    if model.engine == "local" or (model.engine in AT_HOME and not model.base_url):
        return True
    host = urlsplit(model.base_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class RedisBreakers:
    """Those of all models that machines share. `near`: this machine's own."""

    def __init__(
        self, link: RedisLink, near: Callable[[ModelSettings], AnyBreaker], clock: Clock = time.monotonic
    ) -> None:
        link.knows(FAILED, CLAIM, LEFT, SUCCEEDED, LOOK)
        link.risen.append(self._look)
        link.beats.append(self._look)
        self._link, self._near, self._clock = link, near, clock
        self._all: dict[str, RedisBreaker] = {}

    def breaker(self, model: ModelSettings) -> AnyBreaker:
        """That of a model. One whose settings are changed is another model, of which nothing is known yet."""
        near = self._near(model)
        if is_of_this_machine(model):
            return near
        name = msgspec.json.encode(model, enc_hook=str, order="deterministic")
        digest = hashlib.blake2b(name, digest_size=16).hexdigest()
        if digest not in self._all:
            self._all[digest] = RedisBreaker(self._link, digest, near, self._clock)
        return self._all[digest]

    def _look(self) -> None:
        words = f"{PREFIX}breaker:", f"{PREFIX}failures:"
        self._link.tell(LOOK, (INDEX, ALIVE), words, self._heard)

    def _heard(self, reply: bytes) -> None:
        words = reply.decode().split()
        known = {words[at]: (int(words[at + 1]), words[at + 2]) for at in range(0, len(words), 3)}
        for digest, breaker in self._all.items():
            breaker.told(*known.get(digest, (None, "")))


@dataclass(eq=False)
class RedisBreaker:
    """As `live.Breaker`."""

    link: RedisLink
    digest: str
    near: AnyBreaker
    clock: Clock
    _opened: float | None = None  # by our clock, as the server has it
    _probing: bool = False  # somebody does
    _claimed: bool = False  # the attempt that begins now is the probe
    _ours: str = ""  # the token that our probe runs under
    _traced: bool = False  # the server knows something of it, if only failures
    _keys: tuple[str, str, str] = field(init=False)

    def __post_init__(self) -> None:
        self._keys = f"{PREFIX}breaker:{self.digest}", f"{PREFIX}failures:{self.digest}", INDEX

    @property
    def settings(self) -> BreakerSettings:
        """When it opens, and for how long."""
        return self.near.settings

    @property
    def state(self) -> BreakerState:
        """How it is now, as far as it is known here."""
        if self._opened is None or not self.link.up:
            return self.near.state
        if self._probing:
            return "probing"
        return "half_open" if self.clock() >= self._opened + self.settings.open_seconds else "open"

    async def claim(self) -> bool:
        """See `AnyBreaker`."""
        if self._opened is None:
            return True
        words = self.link.token, round(self.settings.open_seconds * 1000)
        token = words[0]

        def forsaken(reply: bytes) -> None:
            if reply.startswith(b"yours"):
                self.link.tell(LEFT, self._keys[:1], (token,))

        try:
            reply: bytes = await self.link.ask(CLAIM, (self._keys[0], ALIVE), words, forsaken)
        except RedisAway:
            return True
        kind, age = reply.split()
        if kind == b"yours":
            self._claimed, self._ours = True, token
            return True
        self.told(int(age) if kind != b"closed" else None, kind.decode())
        return kind == b"closed"

    def enter(self) -> bool:
        """An attempt begins; whether it is the probe: the one whose `claim` has just been granted."""
        if self._opened is None or not self.link.up:
            return self.near.enter()
        claimed, self._claimed = self._claimed, False
        self._probing |= claimed
        return claimed

    def succeeded(self) -> None:
        """The model has answered."""
        self.near.succeeded()
        if self._traced or self._opened is not None:
            self.link.tell(SUCCEEDED, self._keys, (self.digest,))
        self._opened, self._probing, self._traced, self._ours = None, False, False, ""

    def failed(self, *, probe: bool = False) -> None:
        """The model failed."""
        self.near.failed(probe=probe)
        self._traced = True
        if probe:
            self._opened, self._probing, self._ours = self.clock(), False, ""
        window = round(self.settings.window_seconds * 1000)
        words = self.digest, self.settings.failures, window, "probe" if probe else ""
        self.link.tell(FAILED, self._keys, words, self._failed)

    def _failed(self, reply: bytes) -> None:
        kind, age = reply.split()
        if kind == b"open" and self._opened is None:
            self.told(int(age), "")

    def leave(self) -> None:
        """The probe ended without a word on the model: the next request probes."""
        self.near.leave()
        if self._ours:
            self.link.tell(LEFT, self._keys[:1], (self._ours,))
            self._probing, self._ours = False, ""

    def told(self, age: int | None, how: str) -> None:
        """What the server knows: `age` in milliseconds since it opened, -1: failures only, None: nothing."""
        self._traced = age is not None
        if age is not None and age >= 0:
            self._opened, self._probing = self.clock() - age / 1000, how == "probing"
        elif self._opened is not None:
            self._opened, self._probing = None, False
            self.near.succeeded()  # at another machine
