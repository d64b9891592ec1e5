"""What workers ask the coordinator, one function a question. Each raises `InterlaceError`s."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from sqlalchemy import Connection

from interlace.errors import Conflict
from interlace.gateway.processes.desk import Desk
from interlace.gateway.processes.gathering import gathered
from interlace.gateway.processes.messages import (
    NOTHING,
    body_of,
    read_body,
)
from interlace.gateway.wire import convert
from interlace.ledger import bank
from interlace.ledger.book import Accounts
from interlace.ledger.escrow import Ask, Drop, Fenced, GiveBack, Worker
from interlace.ledger.operations import OPERATIONS

if TYPE_CHECKING:
    from interlace.gateway.processes.coordinator import Coordinator

T = TypeVar("T")

WANTING_SECONDS = 10.0  # how long leases are looked at after somebody had to wait for what others hold
FENCED = "worker_closed"


async def _operate(coordinator: Coordinator, _: Desk, body: msgspec.Raw) -> msgspec.Raw:
    name, given = read_body(body, tuple[str, dict[str, Any]])
    operation = OPERATIONS[name]
    result = await asyncio.to_thread(operation.run, coordinator.registry, convert(given, operation.input))
    return body_of(result)


async def _ask(coordinator: Coordinator, desk: Desk, body: msgspec.Raw) -> msgspec.Raw:
    asked, now = read_body(body, Ask), coordinator.registry.clock.now()
    answer = await _at_bank(coordinator, desk, lambda c, worker: bank.ask(c, worker, asked, now=now))
    if answer.verdict == "wait":
        coordinator.wanting_until = coordinator.loop.time() + WANTING_SECONDS
    return body_of(answer)


async def _give_back(coordinator: Coordinator, desk: Desk, body: msgspec.Raw) -> msgspec.Raw:
    back = read_body(body, GiveBack)
    await _at_bank(coordinator, desk, lambda c, worker: bank.give_back(c, worker, back.totals))
    return NOTHING


async def _holdings(coordinator: Coordinator, desk: Desk, _: msgspec.Raw) -> msgspec.Raw:
    return body_of(list((await _at_bank(coordinator, desk, bank.holdings)).items()))


async def _drop(coordinator: Coordinator, desk: Desk, body: msgspec.Raw) -> msgspec.Raw:
    dropped = read_body(body, Drop)
    await _at_bank(coordinator, desk, lambda c, worker: bank.drop(c, worker, dropped.accounts))
    return NOTHING


async def _at_bank(coordinator: Coordinator, desk: Desk, work: Callable[[Connection, Worker], T]) -> T:
    worker = desk.at_bank
    assert worker is not None
    try:
        return await coordinator.patiently(lambda connection: work(connection, worker))
    except Fenced:
        raise Conflict(f"Worker {worker.id} (epoch {worker.epoch}) was closed.", code=FENCED) from None


async def _leave_bank(coordinator: Coordinator, desk: Desk, _: msgspec.Raw) -> msgspec.Raw:
    """All that it did is recorded, and it does nothing more."""
    worker = desk.at_bank
    assert worker is not None
    now = coordinator.registry.clock.now()
    await coordinator.patiently(lambda c: bank.bury(c, worker, now=now, why="it has ended its work"))
    return NOTHING


async def _taken(coordinator: Coordinator, _: Desk, body: msgspec.Raw) -> msgspec.Raw:
    """What is spent and reserved of each account. Of leases that no worker here speaks for, all counts."""
    accounts = read_body(body, Accounts)
    polled = await coordinator.poll("reserved", accounts)
    reserved = {desk.at_bank: read_body(answer, list[int]) for desk, answer in polled.items()}
    found = await asyncio.to_thread(coordinator.registry.store.read, lambda c: bank.taken(c, accounts))
    sums = []
    for at, (account, spent, held) in enumerate(found):
        others = sum(nanos for worker, nanos in held.items() if worker not in reserved)
        sums.append((account, spent, others + sum(theirs[at] for theirs in reserved.values())))
    return body_of(sums)


async def _metrics(coordinator: Coordinator, _: Desk, __: msgspec.Raw) -> msgspec.Raw:
    for desk, answer in (await coordinator.poll("metrics", None)).items():
        desk.metrics = read_body(answer, str)
    living = [
        coordinator.loads.current.pipeline.metrics.text().decode(),
        *(d.metrics for d in coordinator.desks.values()),
    ]
    return body_of(await asyncio.to_thread(gathered, living, [coordinator.counted]))


async def _reload(coordinator: Coordinator, _: Desk, body: msgspec.Raw) -> msgspec.Raw:
    return body_of(await coordinator.reload(read_body(body, str)))


Answering = Callable[["Coordinator", Desk, msgspec.Raw], Awaitable[msgspec.Raw]]

QUESTIONS: Mapping[str, Answering] = {
    "operation": _operate,
    "reload": _reload,
    "ask": _ask,
    "give_back": _give_back,
    "drop": _drop,
    "holdings": _holdings,
    "taken": _taken,
    "metrics": _metrics,
    "find": lambda coordinator, _, body: coordinator.shelves.find(body),
    "keep": lambda coordinator, _, body: coordinator.shelves.keep(body),
    "leave": _leave_bank,
}
"""By name: (coordinator, who asks, body) → the body of the answer."""
