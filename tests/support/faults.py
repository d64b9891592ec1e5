"""The faults of the matrix: each is made while a storm of callers blows, and is gone again when it returns.

A fault says what it needs, what it is allowed beyond what always holds, and within how long all is well again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
import psutil

from tests.support.installation import Installation
from tests.support.served import CHAT, Answer, _take_event, until
from tests.support.serving import free_port
from tests.support.storm import Storm, Try

BROKEN_SECONDS = 1.0  # how long a store, a disk or a clock stays broken
STRANGE = 6  # strange callers at once
SHORT = {"first_token_seconds": 0.7, "between_tokens_seconds": 0.7, "total_seconds": 1.2}  # of models that hang


@dataclass
class Hands:
    """What a fault may take hold of beside the installation; what a cell does not need is not there."""

    postgresql: Any = None
    redis: Any = None
    disk: Any = None
    clock: Any = None


Make = Callable[[Storm, Hands], Awaitable[None]]
Refusal = tuple[int, str]

DRAINING = {(503, "shutting_down")}
NO_LEDGER = {(503, "ledger_unavailable")}


@dataclass(frozen=True)
class Fault:
    """A row of the matrix."""

    name: str
    make: Make
    store: str = "sqlite"
    needs: str = ""  # "disk", "clock", "host", "redis": what its installation must have
    own: bool = True  # an installation that nothing else happens to
    only: tuple[int, ...] = (1, 3)  # processes
    why_only: str = ""
    cuts: bool = False  # callers may find their connection ended
    refuses: frozenset[Refusal] = frozenset()  # how else ordinary callers may be refused meanwhile
    forgets: int = 0  # processes that begin to count rates anew
    seconds: float = 20.0  # until ordinary callers are answered again
    excused: Callable[[Try, dict[str, Any]], bool] = field(default=lambda _tried, _event: False)


# --- processes ---------------------------------------------------------------------------------------------------


def _workers(there: Installation) -> list[psutil.Process]:
    return list(there.served.workers().values())


async def kill_worker(storm: Storm, _: Hands) -> None:
    """kill -9 of a worker."""
    workers = _workers(storm.there)
    victim, count = random.choice(workers), len(workers)
    victim.kill()

    def another() -> bool:
        now = {one.pid for one in _workers(storm.there)}
        return len(now) == count and victim.pid not in now

    await until(another)


async def kill_coordinator(storm: Storm, _: Hands) -> None:
    """kill -9 of the coordinator."""
    victim = storm.there.served.coordinator()
    assert victim is not None
    victim.kill()
    await until(lambda: (now := storm.there.served.coordinator()) is not None and now.pid != victim.pid)


async def kill_first(storm: Storm, _: Hands) -> None:
    """kill -9 of the process that was started, which a service manager starts again."""
    lives = storm.there.lives
    assert storm.there.process is not None
    storm.there.process.kill()
    await until(lambda: storm.there.lives > lives and storm.there.ready())


async def kill_all(storm: Storm, _: Hands) -> None:
    """kill -9 of everything at once, as a power cut does."""
    lives = storm.there.lives
    await asyncio.to_thread(storm.there.kill_all)
    await until(lambda: storm.there.lives > lives and storm.there.ready())


async def kill_host(storm: Storm, _: Hands) -> None:
    """kill -9 of the engine host, while it answers."""
    before = storm.there.served.hosts()["talker"]
    body = {"max_tokens": 100, "ignore_eos": True}
    tries = [storm.made("talker", storm.payers.strange, **body) for _ in range(STRANGE)]
    asking = [asyncio.create_task(one.go(storm.client)) for one in tries]
    if storm.stream:
        await until(lambda: any(len(one.answer.events) > 2 for one in tries))
    else:
        await asyncio.sleep(0.3)
    before.kill()
    await asyncio.gather(*asking)
    for one in tries:
        assert one.whole or one.refusal[1] in {"engine_failed", "engine_unavailable"}, one
    await until(lambda: (now := storm.there.served.hosts().get("talker")) is not None and now.pid != before.pid)
    while not (await storm.made("talker", storm.payers.strange, max_tokens=4).go(storm.client)).whole:
        await asyncio.sleep(0.05)


# --- stores, the disk, the clock ---------------------------------------------------------------------------------


async def stop_postgresql(_: Storm, hands: Hands) -> None:
    """PostgreSQL is stopped, and started again."""
    await asyncio.to_thread(hands.postgresql.stop)
    await asyncio.sleep(BROKEN_SECONDS)
    hands.postgresql.start()  # on this thread: it ends with the one that started it


async def cut_postgresql(storm: Storm, hands: Hands) -> None:
    """All connections to PostgreSQL are cut, several times."""
    from tests.support.stores import ledger_url

    for _ in range(4):
        await asyncio.to_thread(hands.postgresql.cut, ledger_url(storm.there.folder / "home"))
        await asyncio.sleep(BROKEN_SECONDS / 4)


async def read_only(_: Storm, hands: Hands) -> None:
    """PostgreSQL takes no writes for a while."""
    await asyncio.to_thread(hands.postgresql.read_only, True)
    await asyncio.sleep(BROKEN_SECONDS)
    await asyncio.to_thread(hands.postgresql.read_only, False)


async def fill_disk(_: Storm, hands: Hands) -> None:
    """The disk under the ledger is full for a while."""
    await asyncio.to_thread(hands.disk.fill)
    await asyncio.sleep(BROKEN_SECONDS)
    hands.disk.free()


async def set_clock_back(_: Storm, hands: Hands) -> None:
    """The clock is set back by an hour, and put right again."""
    hands.clock.back()
    await asyncio.sleep(BROKEN_SECONDS)
    hands.clock.right()


async def redis_goes(_: Storm, hands: Hands, *, how: str) -> None:
    """Redis stops answering for a while, loses its data, or both."""
    if how == "paused":
        hands.redis.pause()
        await asyncio.sleep(BROKEN_SECONDS)
        hands.redis.go_on()
    elif how == "flushed":
        for _ in range(4):
            with hands.redis.client() as client:
                client.flushall()
            await asyncio.sleep(BROKEN_SECONDS / 4)
    else:
        hands.redis.stop()
        await asyncio.sleep(BROKEN_SECONDS)
        hands.redis.start()


# --- providers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Provided:
    """A model whose provider does something wrong. `ends`: how its callers may hear of it."""

    name: str
    script: str
    ends: tuple[Refusal, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    retry_after: bool = False
    lies: bool = False

    async def make(self, storm: Storm, _: Hands) -> None:
        """Some callers ask it, twice each."""

        async def twice() -> None:
            for _ in range(2):
                one = await storm.made(self.name, storm.payers.strange, max_tokens=5).go(storm.client)
                assert one.refusal in self.ends, one.answer
                assert one.whole == (one.refusal == (200, "")), one.answer
                if self.retry_after:
                    assert int(one.answer.headers["retry-after"]) >= 1

        await asyncio.gather(*(twice() for _ in range(STRANGE)))


WELL = (200, "")
FAILED = ((502, "engine_failed"), (200, "engine_failed"))  # before the first word, and after it

PROVIDED = (
    Provided("refuses", "", ((503, "engine_unavailable"),), {"base_url": f"http://127.0.0.1:{free_port()}/v1"}),
    Provided("hangs-first", "hang-first", FAILED, SHORT),
    Provided("hangs-mid", "hang-mid", FAILED, SHORT),
    Provided("cuts", "cut", FAILED),
    Provided("half-json", "half-json", FAILED),
    Provided("busy", "status:429", ((429, "rate_limit_exceeded"),), retry_after=True),
    Provided("liar", "liar", (WELL,), lies=True),
    Provided("long-line", "long-line", FAILED),
    Provided("drips", "drip", FAILED, SHORT),
)


# --- callers -----------------------------------------------------------------------------------------------------


async def goes(storm: Storm, _: Hands, *, when: str) -> None:
    """Callers hang up."""
    tries = [storm.made("long", storm.payers.strange, max_tokens=60) for _ in range(2 * STRANGE)]
    tasks = [asyncio.create_task(one.go(storm.client)) for one in tries]
    said = storm.provider.said

    async def hang_up(one: Try, task: asyncio.Task[Try]) -> None:
        if when == "before":
            await asyncio.sleep(random.uniform(0, 0.05))
        elif when == "during":
            await until(lambda: said[one.tag] >= 5)
        else:
            await until(lambda: said[one.tag] >= 60)
            await asyncio.sleep(random.uniform(0, 0.02))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    await asyncio.gather(*(hang_up(one, task) for one, task in zip(tries, tasks, strict=True)))


async def reads_slowly(storm: Storm, _: Hands) -> None:
    """Callers take their answers a few kilobytes at a time."""
    tries = [storm.made("wordy", storm.payers.strange, max_tokens=1000) for _ in range(STRANGE)]
    await asyncio.gather(*(_by_hand(storm, one, read=(8192, 0.01)) for one in tries))
    assert all(one.whole for one in tries), [one for one in tries if not one.whole]


async def sends_slowly(storm: Storm, _: Hands) -> None:
    """Callers send their requests a few bytes at a time."""
    tries = [storm.made("long", storm.payers.strange, max_tokens=10) for _ in range(STRANGE)]
    await asyncio.gather(*(_by_hand(storm, one, write=(16, 0.03)) for one in tries))
    assert all(one.whole for one in tries), [one for one in tries if not one.whole]


async def _by_hand(
    storm: Storm, one: Try, *, read: tuple[int, float] = (65536, 0), write: tuple[int, float] = (65536, 0)
) -> None:
    """Send and read on a plain socket, so many bytes and then a pause of so many seconds."""
    assert one.who is not None
    one.began = time.monotonic()
    options = {"stream_options": {"include_usage": True}} if one.streams else {}
    body = json.dumps({**options, **one.body, "messages": [{"role": "user", "content": one.tag}]}).encode()
    head = {"host": "x", **one.who.headers, "x-interlace-tags": one.tag, "connection": "close"}
    head |= {"content-type": "application/json", "content-length": str(len(body))}
    lines = [f"POST {CHAT} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
    payload = "\r\n".join(lines).encode() + body
    loop = asyncio.get_running_loop()
    with socket.socket() as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.setblocking(False)
        await loop.sock_connect(wire, ("127.0.0.1", storm.there.port))
        for at in range(0, len(payload), write[0]):
            await loop.sock_sendall(wire, payload[at : at + write[0]])
            await asyncio.sleep(write[1])
        received = bytearray()
        while piece := await loop.sock_recv(wire, read[0]):
            received += piece
            await asyncio.sleep(read[1])
    _take_answer(one.answer, bytes(received))


def _take_answer(answer: Answer, received: bytes) -> None:
    """Head and body of an answer, which must be whole."""
    head, _, rest = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    answer.status = int(first.split()[1])
    answer.headers = httpx.Headers([tuple(line.split(": ", 1)) for line in lines])  # type: ignore[arg-type,misc]
    body = _unchunked(rest) if "transfer-encoding" in answer.headers else rest
    if answer.headers["content-type"].startswith("text/event-stream"):
        for line in body.decode().split("\n"):
            if line:
                _take_event(answer, line)
    else:
        answer.events.append(json.loads(body))


def _unchunked(rest: bytes) -> bytes:
    body = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if (length := int(size, 16)) == 0:
            return body
        body, rest = body + rest[:length], rest[length + 2 :]


# --- the table ---------------------------------------------------------------------------------------------------


def _late(one: Try, event: dict[str, Any]) -> bool:
    """A host's tokens are not the provider's words."""
    return one.body["model"] == "talker"


def _overrun(one: Try, event: dict[str, Any]) -> bool:
    """It says ten times what it may, and the event says by how much."""
    beyond = event["cost_nanos"] - event["overrun_nanos"]
    return one.body["model"] == "liar" and beyond == event["cost_nanos"] // 10


_KILLED = DRAINING | NO_LEDGER | {(503, "engine_unavailable")}
_ONE = "one process: its only one, see the supervisor's row"

FAULTS: Sequence[Fault] = (
    Fault("kill -9: worker", kill_worker, only=(3,), why_only=_ONE, cuts=True, refuses=frozenset(NO_LEDGER)),
    Fault("kill -9: coordinator", kill_coordinator, only=(3,), why_only=_ONE, refuses=frozenset(NO_LEDGER)),
    Fault("kill -9: supervisor", kill_first, cuts=True, forgets=3, refuses=frozenset(_KILLED), seconds=30),
    Fault("kill -9: all of them", kill_all, cuts=True, forgets=3, refuses=frozenset(_KILLED), seconds=30),
    Fault("kill -9: engine host", kill_host, needs="host", excused=_late),
    Fault("PostgreSQL: stopped", stop_postgresql, store="postgresql", refuses=frozenset(NO_LEDGER)),
    Fault("PostgreSQL: cut", cut_postgresql, store="postgresql", refuses=frozenset(NO_LEDGER)),
    Fault("PostgreSQL: read-only", read_only, store="postgresql", refuses=frozenset(NO_LEDGER)),
    *(
        Fault(f"Redis: {how}", partial(redis_goes, how=how), store="postgresql", needs="redis", forgets=1)
        for how in ("paused", "flushed", "restarted")
    ),
    Fault("disk: full", fill_disk, needs="disk", refuses=frozenset(NO_LEDGER)),
    Fault("clock: set back", set_clock_back, needs="clock"),
    *(
        Fault(f"provider: {one.name}", one.make, own=False, **({"excused": _overrun} if one.lies else {}))
        for one in PROVIDED
    ),
    *(
        Fault(f"caller: goes {when}", partial(goes, when=when), own=False)
        for when in ("before", "during", "at the end")
    ),
    Fault("caller: reads slowly", reads_slowly, own=False),
    Fault("caller: sends slowly", sends_slowly, own=False),
)
