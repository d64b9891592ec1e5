"""The limits of plans across machines: the numbers of `limits.py` at a Redis or Valkey server, by its clock.

A limit is looked at and counted there in one step, so that no two machines give the last request of a minute twice.
What a plan does not limit is not asked. One round trip before a request begins, for requests and what runs at once, and
one before it is admitted, for its tokens, where the plan limits them; corrections are sent and not waited for.

All of it is counted in this machine's memory as well. While the server is away, and for a second after it is back, that
decides, by each limit's part: the limit divided by the number of machines, and at least one. So all together they let
no more through than the limit, but for limits smaller than their number; and the server is told what was let through
meanwhile before it decides again. A server that has lost its data has forgotten a minute at most: one window's worth
may pass again, and nothing of money is there.

What runs is counted by token (see `redis_link`): that of a machine which is not heard of is dropped after 30 seconds,
that of a worker which died once the next one has its place.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from interlace.ledger.limits import Counted, Exceeded, Left, Limiter, Limits, Rates, half_of
from interlace.ledger.redis_scripts import BACK, BEGIN, END, LOOK, STATE, TAKE
from interlace.redis_link import ALIVE, PREFIX, RedisAway, RedisLink

MOST = 10**15  # a provider may claim any number of tokens; more than this is not counted at once
REQUESTS, TOKENS = "requests", "tokens"
ANY = Rates(rpm=MOST)  # counted, whatever there is
NOWHERE = Counted(-1, 0)


@dataclass(slots=True)
class FarCounted(Counted):
    """Counted at the server; `second` -1 until it has said when. `token`: of whom; `near`: as it is counted here."""

    token: str
    near: Counted


@dataclass(slots=True)
class _Seen:
    """What a window held when the server last spoke of it."""

    used: int
    empty_at: float  # by the clock that `now` is of


def _part(most: int | None, machines: int) -> int | None:
    return most if most is None or machines <= 1 else min(most, max(1, most // machines))


class RedisLimits:
    """The uses of all keys, at all machines; a `FarLimiter`. `near`: this machine's own, for while the server is away.
    `machines`: how many there are. `given`: the clock is whoever asks, not the server: for tests."""

    def __init__(
        self, link: RedisLink, near: Limiter, machines: Callable[[], int] = lambda: 1, *, given: bool = False
    ) -> None:
        link.knows(BEGIN, END, STATE, TAKE, BACK, LOOK)
        link.risen.append(self._state)
        self._link, self._near, self._machines, self._given = link, near, machines, given
        self._running: Counter[str] = Counter()  # here, of keys with a limit on that
        self._stated: Counter[str] = Counter()  # of them, what the server has under our token
        self._seen: dict[tuple[str, str], _Seen] = {}
        self._meanwhile = Limits()  # counted while the server was away
        self.alone = 0  # how often this machine had to decide by itself

    # --- questions -----------------------------------------------------------------------------------------------

    async def begin(self, key_id: str, rates: Rates, now: float, *, idle: bool = False) -> Exceeded | None:
        """As `Limiter` has it."""
        if rates.rpm is None and rates.concurrency is None:
            return self._near.begin(key_id, rates, now, idle=idle)
        here = Rates(concurrency=rates.concurrency)  # what runs at this machine is known for sure
        if (exceeded := self._near.begin(key_id, here, now, idle=idle)) is not None:
            return exceeded
        try:
            exceeded = await self._begin(key_id, rates, now, idle=idle)
        except RedisAway:
            if not idle:
                self._near.end(key_id)
            return self._begin_alone(key_id, rates, now, idle=idle)
        except BaseException:
            if not idle:
                self._near.end(key_id)
            raise
        if exceeded is not None and not idle:
            self._near.end(key_id)
        return exceeded

    async def visit(self, key_id: str, rates: Rates, now: float) -> Exceeded | None:
        """As `Limiter` has it."""
        if rates.rpm is None:
            return None
        try:
            counted = await self._take(key_id, REQUESTS, 1, rates.rpm, now)
        except RedisAway:
            exceeded = self._near.visit(key_id, self._share(rates), now)
            if exceeded is None:
                self._count_alone(key_id, REQUESTS, 1, now)
            return exceeded
        if isinstance(counted, FarCounted):
            self._near.visit(key_id, ANY, now)
            return None
        used, wait = counted
        return Exceeded("requests per minute", rates.rpm, used, 1, wait)

    async def take_tokens(
        self, key_id: str, rates: Rates, tokens: int, now: float, *, idle: bool = False
    ) -> Counted | Exceeded:
        """As `Limiter` has it."""
        if rates.tpm is None:
            return self._near.take_tokens(key_id, rates, tokens, now, idle=idle)
        most = min(rates.tpm, max(half_of(rates.tpm), tokens)) if idle else rates.tpm
        try:
            counted = await self._take(key_id, TOKENS, tokens, most, now)
        except RedisAway:
            return self._take_alone(key_id, rates, tokens, now, idle=idle)
        if isinstance(counted, FarCounted):
            counted.near = self._near.more_tokens(key_id, tokens, now)
            return counted
        used, wait = counted
        return Exceeded("tokens per minute", most, used, tokens, wait, tokens > rates.tpm)

    async def look(self, key_id: str, now: float) -> int | None:
        """How many requests of the key run at all machines; None while nobody can say. `left` is exact after it."""
        keys = *(f"{PREFIX}{what}:{key_id}" for what in (REQUESTS, TOKENS, "running")), ALIVE
        try:
            words = (await self._link.ask(LOOK, keys, (self._now(now),))).split()
        except RedisAway:
            return None
        self._saw(key_id, REQUESTS, words, now)
        self._saw(key_id, TOKENS, words[2:], now)
        return int(words[4])

    # --- statements ----------------------------------------------------------------------------------------------

    def end(self, key_id: str) -> None:
        """As `Limiter` has it."""
        self._near.end(key_id)
        _less(self._running, key_id)
        if _less(self._stated, key_id):
            self._link.tell(END, (f"{PREFIX}running:{key_id}",), (self._link.token,))

    def more_tokens(self, key_id: str, tokens: int, now: float) -> Counted:
        """As `Limiter` has it."""
        near = self._near.more_tokens(key_id, tokens, now)
        if not self._link.trusted:
            self._count_alone(key_id, TOKENS, tokens, now)
            return near
        counted = FarCounted(-1, tokens, self._link.token, near)

        def heard(reply: bytes) -> None:
            _, *words = reply.split()
            self._saw(key_id, TOKENS, words, now)
            counted.second = int(words[2])

        words = self._now(now), min(tokens, MOST), ""
        self._link.tell(TAKE, (f"{PREFIX}tokens:{key_id}",), words, heard)
        return counted

    def settle_tokens(self, key_id: str, counted: Counted, tokens: int, used: int, now: float) -> None:
        """As `Limiter` has it."""
        if not isinstance(counted, FarCounted):
            self._near.settle_tokens(key_id, counted, tokens, used, now)
            return
        if used > tokens:
            self.more_tokens(key_id, used - tokens, now)
            return
        self._near.settle_tokens(key_id, counted.near, tokens, used, now)
        if used < tokens and counted.token == self._link.token:
            second = "" if counted.second < 0 else counted.second
            words = self._now(now), min(tokens - used, MOST), second
            self._link.tell(BACK, (f"{PREFIX}tokens:{key_id}",), words, self._hears(key_id, TOKENS, now))

    def left(self, key_id: str, rates: Rates, now: float) -> dict[str, Left]:
        """As `Limiter` has it, by what the server last said of the key."""
        if not self._link.trusted:
            return self._near.left(key_id, self._share(rates), now)
        found: dict[str, Left] = {}
        for name, limit in ((REQUESTS, rates.rpm), (TOKENS, rates.tpm)):
            if limit is not None:
                seen = self._seen.get((key_id, name))
                reset = 0.0 if seen is None else max(0.0, seen.empty_at - now)
                found[name] = Left(limit, max(0, limit - seen.used) if seen and reset else limit, reset)
        return found

    def running(self, key_id: str) -> int:
        """How many requests of the key run at this machine."""
        return self._near.running(key_id)

    # --- while the server is away --------------------------------------------------------------------------------

    def _share(self, rates: Rates) -> Rates:
        """What this machine may let through by itself."""
        many = self._machines()
        return Rates(_part(rates.rpm, many), _part(rates.tpm, many), _part(rates.concurrency, many))

    def _begin_alone(self, key_id: str, rates: Rates, now: float, *, idle: bool) -> Exceeded | None:
        self.alone += 1
        exceeded = self._near.begin(key_id, self._share(rates), now, idle=idle)
        if exceeded is None:
            if rates.rpm is not None:
                self._count_alone(key_id, REQUESTS, 1, now)
            if rates.concurrency is not None and not idle:
                self._running[key_id] += 1
                self._state_running(key_id)
        return exceeded

    def _take_alone(self, key_id: str, rates: Rates, tokens: int, now: float, *, idle: bool) -> Counted | Exceeded:
        self.alone += 1
        answer = self._near.take_tokens(key_id, self._share(rates), tokens, now, idle=idle)
        if isinstance(answer, Exceeded):
            assert rates.tpm is not None
            return replace(answer, hopeless=tokens > rates.tpm)  # what is too large for a part may fit again later
        self._count_alone(key_id, TOKENS, tokens, now)
        return answer

    def _count_alone(self, key_id: str, name: str, amount: int, now: float) -> None:
        """The server hears of it: now, or once it is back."""
        if self._link.up:
            words = self._now(now), min(amount, MOST), ""
            self._link.tell(TAKE, (f"{PREFIX}{name}:{key_id}",), words)
        else:
            use = self._meanwhile.use(key_id)
            (use.requests if name == REQUESTS else use.tokens).add(amount, now)

    def _state_running(self, key_id: str) -> None:
        if self._link.up:
            self._stated[key_id] = self._running[key_id]
            words = self._link.token, self._running[key_id]
            self._link.tell(STATE, (f"{PREFIX}running:{key_id}", ALIVE), words)

    def _state(self) -> None:
        """Over a new connection: what runs here, and what was let through meanwhile."""
        meanwhile, self._meanwhile = self._meanwhile, Limits()
        self._stated.clear()
        for key_id in self._running:
            self._state_running(key_id)
        now = time.monotonic()
        for key_id, use in meanwhile.uses():
            for name, window in ((REQUESTS, use.requests), (TOKENS, use.tokens)):
                if used := window.total if self._given else window.used(now):
                    self._link.tell(TAKE, (f"{PREFIX}{name}:{key_id}",), ("", min(used, MOST), ""))

    # --- inside --------------------------------------------------------------------------------------------------

    async def _begin(self, key_id: str, rates: Rates, now: float, *, idle: bool) -> Exceeded | None:
        """Count it at the server, or say what is in its way there. Raises `RedisAway`."""
        most = half_of(rates.rpm) if idle and rates.rpm is not None else rates.rpm
        runs, token = rates.concurrency is not None and not idle, self._link.token
        words = self._now(now), _word(most), _word(rates.concurrency), "idle" if idle else "", token
        keys = f"{PREFIX}requests:{key_id}", f"{PREFIX}running:{key_id}", ALIVE
        forsaken = self._take_back_begin(key_id, token) if runs else _nothing
        kind, *said = (await self._link.ask(BEGIN, keys, words, forsaken)).split()
        if kind == b"?":
            self._link.forgotten()
            raise RedisAway
        if kind == b"concurrency":
            assert rates.concurrency is not None
            return Exceeded("concurrent requests", rates.concurrency, int(said[0]), 1, 1.0)
        if most is not None:
            self._saw(key_id, REQUESTS, said, now)
        if kind == b"requests":
            assert most is not None
            return Exceeded("requests per minute", most, int(said[0]), 1, float(said[2]))
        if most is not None:
            self._near.visit(key_id, ANY, now)
        if runs:
            self._running[key_id] += 1
            if token == self._link.token:
                self._stated[key_id] += 1
        return None

    async def _take(self, key_id: str, name: str, amount: int, most: int, now: float) -> FarCounted | tuple[int, float]:
        """Count it, or say what is used and how long to wait. Raises `RedisAway`."""
        token, words = self._link.token, (self._now(now), min(amount, MOST), most)
        keys = (f"{PREFIX}{name}:{key_id}",)

        def forsaken(reply: bytes) -> None:
            kind, _, _, second = reply.split()
            if kind == b"ok" and name == TOKENS:
                self._link.tell(BACK, keys, (self._now(now), min(amount, MOST), second))

        kind, *said = (await self._link.ask(TAKE, keys, words, forsaken)).split()
        self._saw(key_id, name, said, now)
        return FarCounted(int(said[2]), amount, token, NOWHERE) if kind == b"ok" else (int(said[0]), float(said[2]))

    def _take_back_begin(self, key_id: str, token: str) -> Callable[[bytes], None]:
        """Whoever began has gone before it heard so."""

        def forsaken(reply: bytes) -> None:
            if reply.startswith(b"ok"):
                self._link.tell(END, (f"{PREFIX}running:{key_id}",), (token,))

        return forsaken

    def _hears(self, key_id: str, name: str, now: float) -> Callable[[bytes], None]:
        return lambda reply: self._saw(key_id, name, reply.split()[1:], now)

    def _saw(self, key_id: str, name: str, words: list[bytes], now: float) -> None:
        self._seen[key_id, name] = _Seen(int(words[0]), now + float(words[1]))

    def _now(self, now: float) -> str:
        return repr(now) if self._given else ""


def _word(limit: int | None) -> str | int:
    return "" if limit is None else limit


def _less(counts: Counter[str], key_id: str) -> bool:
    """One less of it, if there is any."""
    if (count := counts[key_id]) > 1:
        counts[key_id] = count - 1
    else:
        counts.pop(key_id, None)
    return count > 0


def _nothing(_: bytes) -> None:
    """Nothing has to be taken back."""
