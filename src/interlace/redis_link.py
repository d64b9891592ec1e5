"""A process's connection to the Redis or Valkey server that several machines count in.

    link = RedisLink(url, "machine-w1", timeout_seconds=0.25)
    link.knows(SCRIPT)
    keeping = asyncio.create_task(link.keep())     connected again and again, until cancelled
    reply = await link.ask(SCRIPT, keys, words)    raises `RedisAway`, at the latest after `timeout_seconds`
    link.tell(SCRIPT, keys, words)                 the same, and nobody waits

There is one connection, and all that is asked within one turn of the event loop goes together. A script is one step
for everybody else at the server, and takes its time from the server's clock.

Who counts there has a token, in `interlace:alive` with the moment it was last heard of. Each connection makes a new one
and ends the one before in the same place, so that nothing which a connection that was given up had still on its way
counts any more, and a server that has lost its data is found out: it does not know the token. A token that was not
heard of for `LEASE_SECONDS` counts as dead, with all that it ran.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import secrets
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from interlace.errors import ConfigError

log = logging.getLogger(__name__)

BEAT_SECONDS = 1.0  # from one sign of life to the next
LEASE_SECONDS = 30.0  # without one, so long, a process counts as dead
AGAIN_SECONDS = 0.25  # from the loss of a connection to the next try, and from one try to the next
CONNECT_SECONDS = 2.0  # no request waits for it
TRUST_SECONDS = 1.0  # after it was away: by then all machines are back, and have told it what they let through
GRACE_SECONDS = 0.02  # answers that came while this process was busy are read first
_ONE_KEYS_FAULTS = ("WRONGTYPE", "ERR")  # errors of a script with what a key holds; all others are the server's
PREFIX: Final = "interlace:"
ALIVE: Final = PREFIX + "alive"

Word = str | bytes | int


@dataclass(frozen=True, slots=True)
class Script:
    """Lua, by its text and what the server calls it."""

    text: str
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "digest", digest)


JOIN = Script("""
local place, token = ARGV[1], ARGV[2]
for _, other in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if string.sub(other, 1, #place + 1) == place .. '#' then redis.call('ZREM', KEYS[1], other) end
end
redis.call('ZADD', KEYS[1], redis.call('TIME')[1], token)
return redis.status_reply('OK')
""")
BEAT = Script("""
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return redis.status_reply('?') end
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 2 * tonumber(ARGV[2]))
return redis.status_reply('OK')
""")
LEAVE = Script("redis.call('ZREM', KEYS[1], ARGV[1]) return redis.status_reply('OK')")


class RedisAway(Exception):
    """The server does not answer, or not in time. Says why in a few words, without a password."""


@dataclass(eq=False, slots=True)
class _Asked:
    """Something that was asked, and who hears the answer."""

    heard: Callable[[Any], None]
    lost: Callable[[], None]
    until: float


@dataclass(eq=False)
class RedisLink:
    """See the module. `place`: what this process is called among all that share the server; one at a time has it.

    `risen` is called at every new connection, before anything is asked over it, and `beats` once a second: both may
    `tell`. For the event loop only."""

    url: str = field(repr=False)
    place: str
    timeout_seconds: float = 0.25
    risen: list[Callable[[], None]] = field(default_factory=list)
    beats: list[Callable[[], None]] = field(default_factory=list)
    token: str = ""
    up: bool = False  # connected: it may be told
    losses: int = 0  # how often it was lost, or not found at the start
    _scripts: dict[str, Script] = field(default_factory=dict)
    _waiting: deque[_Asked] = field(default_factory=deque)
    _outbox: list[tuple[Word, ...]] = field(default_factory=list)
    _filled: asyncio.Event = field(default_factory=asyncio.Event)
    _broken: asyncio.Future[None] | None = None
    _timer: asyncio.TimerHandle | None = None
    _trusted_from: float = 0.0  # by the loop's clock
    _told: bool = False  # the log has said that it is away
    _faulty: bool = False  # and that something strange lies there
    _tried: asyncio.Event = field(default_factory=asyncio.Event)  # to connect, once at least

    def __post_init__(self) -> None:
        self._pool = _pool(self.url)
        self.knows(JOIN, BEAT, LEAVE)

    @property
    def trusted(self) -> bool:
        """Whether it may be asked: it knows what all machines have counted."""
        return self.up and asyncio.get_running_loop().time() >= self._trusted_from

    def knows(self, *scripts: Script) -> None:
        """Scripts that will be asked; before `keep`."""
        self._scripts |= {one.digest: one for one in scripts}

    # --- asking ------------------------------------------------------------------------------------------------------

    async def ask(
        self,
        script: Script,
        keys: Iterable[str],
        words: Iterable[Word],
        forsaken: Callable[[Any], None] = lambda _: None,
    ) -> Any:
        """What the script says: bytes, a list or None. Where whoever asks is cancelled meanwhile `forsaken` gets it."""
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def heard(reply: Any) -> None:
            if not answered.done():
                answered.set_result(reply)
            elif answered.cancelled():
                forsaken(reply)

        def lost() -> None:
            if not answered.done():
                answered.set_exception(RedisAway("it did not answer"))

        if not self.trusted:
            raise RedisAway("it is not there, or has just come back")
        self._send(script, keys, words, heard, lost)
        try:
            return await answered
        except asyncio.CancelledError:
            if answered.done() and not answered.cancelled() and answered.exception() is None:
                forsaken(answered.result())
            raise

    def tell(
        self,
        script: Script,
        keys: Iterable[str],
        words: Iterable[Word],
        heard: Callable[[Any], None] = lambda _: None,
    ) -> None:
        """Say it, and hear the answer if there is one; while the server is away nothing is sent."""
        if self.up:
            self._send(script, keys, words, heard, lambda: None)

    def _send(
        self,
        script: Script,
        keys: Iterable[str],
        words: Iterable[Word],
        heard: Callable[[Any], None],
        lost: Callable[[], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        keys = tuple(keys)
        self._waiting.append(_Asked(heard, lost, loop.time() + self.timeout_seconds))
        self._outbox.append(("EVALSHA", script.digest, len(keys), *keys, *words))
        self._filled.set()
        if self._timer is None:
            self._timer = loop.call_later(self.timeout_seconds, self._look)

    def _look(self) -> None:
        """The one that has waited longest is due."""
        loop, self._timer = asyncio.get_running_loop(), None
        if not self._waiting:
            return
        first = self._waiting[0]
        if loop.time() < first.until:
            self._timer = loop.call_at(first.until, self._look)
        else:
            self._timer = loop.call_later(GRACE_SECONDS, self._give_up, first)

    def _give_up(self, late: _Asked) -> None:
        self._timer = None
        if self._waiting and self._waiting[0] is late:
            self.give_up(f"no answer within {self.timeout_seconds:g} s")
        else:
            self._look()

    def give_up(self, why: str) -> None:
        """This connection is no good; another is made."""
        self.up = False
        if self._broken is not None and not self._broken.done():
            self._broken.set_exception(RedisAway(why))
        self._forget()

    def _forget(self) -> None:
        """Nobody waits any longer for what was asked."""
        waiting, self._waiting, self._outbox = self._waiting, deque(), []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for one in waiting:
            one.lost()

    # --- the connection ----------------------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Be connected, again and again, until cancelled."""
        from redis.exceptions import RedisError

        while True:
            try:
                await self._once()
            except (RedisError, RedisAway, OSError, TimeoutError) as error:
                self._lose(error)
            self._tried.set()
            await asyncio.sleep(AGAIN_SECONDS)

    async def tried(self) -> None:
        """Return once there is a connection, or there has turned out to be none."""
        await self._tried.wait()

    async def _once(self) -> None:
        """One connection, from its beginning to its end. Raises whatever ends it."""
        connection = self._pool.make_connection()
        tasks: list[asyncio.Task[None]] = []
        self._broken = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._join(connection)
            works: tuple[Coroutine[Any, Any, None], ...] = (self._write(connection), self._read(connection))
            self._filled.clear()
            self.up = True
            self._come()
            for hook in self.risen:
                hook()
            tasks = [asyncio.create_task(work) for work in (*works, self._beat())]
            done, _ = await asyncio.wait([*tasks, self._broken], return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                one.result()
        finally:
            self.up = False
            self._forget()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._broken.done() and not self._broken.cancelled():
                self._broken.exception()
            await connection.disconnect(nowait=True)

    async def _join(self, connection: Any) -> None:
        await connection.connect()
        commands: list[tuple[Word, ...]] = [("SCRIPT", "LOAD", one.text) for one in self._scripts.values()]
        self.token = f"{self.place}#{secrets.token_hex(6)}"
        commands.append(("EVALSHA", JOIN.digest, 1, ALIVE, self.place, self.token))
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        for _ in commands:
            await connection.read_response(disable_decoding=True, timeout=math.inf)

    async def _write(self, connection: Any) -> None:
        while True:
            await self._filled.wait()
            self._filled.clear()
            commands, self._outbox = self._outbox, []
            await connection.send_packed_command(connection.pack_commands(commands), check_health=False)

    async def _read(self, connection: Any) -> None:
        from redis.exceptions import ResponseError

        while True:
            try:
                reply = await connection.read_response(disable_decoding=True, timeout=math.inf)
            except ResponseError as error:
                if not self._waiting or not str(error).startswith(_ONE_KEYS_FAULTS):
                    raise
                self._waiting.popleft().lost()
                if not self._faulty:
                    self._faulty = True
                    log.warning("Redis holds something that is not ours", extra={"fields": {"why": _why(error)}})
                continue
            if not self._waiting:  # this connection was given up
                return
            self._waiting.popleft().heard(reply)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            self.tell(BEAT, (ALIVE,), (self.token, int(LEASE_SECONDS)), self._known)
            for hook in self.beats:
                hook()

    def _known(self, reply: bytes) -> None:
        if reply == b"?":
            self.forgotten()

    def forgotten(self) -> None:
        """The server does not know our token: it has lost its data, or takes us for dead. We begin anew there."""
        self.give_up("it has lost what was counted there")

    async def leave(self) -> None:
        """The end of this process, which runs nothing any more; another may take its place at once."""
        try:
            await self.ask(LEAVE, (ALIVE,), (self.token,))
        except RedisAway:
            return

    # --- what the operator hears -------------------------------------------------------------------------------------

    def _come(self) -> None:
        if self._told:
            self._trusted_from = asyncio.get_running_loop().time() + TRUST_SECONDS
            log.info("Redis answers: limits are counted by all machines together again")
        self._told = False
        self._tried.set()

    def _lose(self, error: BaseException) -> None:
        if self._told:
            return
        self._told = True
        self.losses += 1
        fields = {"error": type(error).__name__, "why": _why(error)}
        log.warning("Redis is away: this machine counts limits by itself", extra={"fields": fields})


def _why(error: BaseException) -> str:
    """The first words of an error, which name no secret: Redis quotes no password, and addresses hold none."""
    return str(error)[:200] if not isinstance(error, TimeoutError) else "no connection in time"


def address_of(reference: str, env: Mapping[str, str]) -> str:
    """The address that a setting such as `${REDIS_URL}` stands for; "" where there is none. Raises `ConfigError`, which
    does not quote it, for one that cannot be used here."""
    address = env.get(reference[2:-1], "").strip() if reference else ""
    if address:
        _pool(address)
    return address


def _pool(url: str) -> Any:
    """Makes connections by a URL; raises `ConfigError`, which does not quote it."""
    try:
        from redis.asyncio import ConnectionPool
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError as error:
        raise ConfigError("A package for it is missing. Install it: pip install 'interlace[redis]'") from error
    try:
        return ConnectionPool.from_url(
            url,
            protocol=2,
            socket_timeout=None,
            socket_connect_timeout=CONNECT_SECONDS,
            retry=Retry(NoBackoff(), 0),
            driver_info=None,
        )
    except ValueError as error:
        raise ConfigError(
            "The variable that it names holds no address of a server. Write redis://HOST:6379/0, or rediss:// for TLS, "
            "and with a password redis://USER:PASSWORD@HOST:6379/0"
        ) from error
