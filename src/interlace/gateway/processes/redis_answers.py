"""What routes remember, kept on a Redis or Valkey server for all machines, so that any of them finds what another was
told. Bounded as with one machine: so many of a route, in all of them together, each so long and no longer.

Answers belong to the models, routes and guards under which they were given: those of another configuration have other
names. They lie there as bytes in plain text, under digests; while the server is away nothing is remembered.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from interlace.config import RouteSettings, Settings
from interlace.gateway.processes.shelves import answer_of, bytes_of
from interlace.gateway.routing import Kept, fits
from interlace.redis_link import PREFIX, RedisAway, RedisLink, Script

_encoder = msgspec.msgpack.Encoder(enc_hook=str, order="deterministic")

_YEAR = 366 * 86_400.0

_NOW = """
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
"""

# keys: answer, index. words: its name in the index
FIND = Script(
    _NOW
    + """
local found = redis.call('GET', KEYS[1])
if found then
  redis.call('ZADD', KEYS[2], 'XX', now, ARGV[1])
else
  redis.call('ZREM', KEYS[2], ARGV[1])
end
return found
"""
)

# keys: answer, index. words: its name in the index, the answer, for how many ms, how many are kept, how names begin
KEEP = Script(
    _NOW
    + """
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
local many = redis.call('ZCARD', KEYS[2]) - tonumber(ARGV[4])
if many > 0 then
  local least = redis.call('ZPOPMIN', KEYS[2], many)
  for i = 1, #least, 2 do redis.call('DEL', ARGV[5] .. least[i]) end
end
return redis.status_reply('ok')
"""
)


def knows_answers(link: RedisLink) -> None:
    """The link may be asked for them."""
    link.knows(FIND, KEEP)


@dataclass(frozen=True, slots=True)
class RedisMemory:
    """Of one route; an `AnyMemory`."""

    link: RedisLink
    route: RouteSettings
    digest: str

    @classmethod
    def of(cls, link: RedisLink, settings: Settings, route: RouteSettings) -> RedisMemory:
        """That of a route under these settings."""
        shape = _encoder.encode((settings.models, settings.routes, settings.guards, route.name))
        return cls(link, route, hashlib.blake2b(shape, digest_size=16).hexdigest())

    async def find(self, key: bytes) -> Kept | None:
        """As `AnyMemory` has it."""
        name = key.hex()
        try:
            found: bytes | None = await self.link.ask(FIND, self._keys(name), (name,))
        except RedisAway:
            return None
        try:
            return None if found is None else answer_of(found)
        except msgspec.DecodeError:  # of another version, or not ours
            return None

    async def keep(self, key: bytes, kept: Kept) -> None:
        """As `AnyMemory` has it. Nobody waits for it."""
        if fits(kept, self.route.reuse):
            name, reuse = key.hex(), self.route.reuse
            milliseconds = max(1, round(min(reuse.seconds, _YEAR) * 1000))
            words = name, bytes_of(kept), milliseconds, reuse.entries, self._begins
            self.link.tell(KEEP, self._keys(name), words)

    @property
    def _begins(self) -> str:
        return f"{PREFIX}answer:{self.digest}:"

    def _keys(self, name: str) -> tuple[str, str]:
        return self._begins + name, f"{PREFIX}answers:{self.digest}"
