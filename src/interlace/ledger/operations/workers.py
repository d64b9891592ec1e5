"""Processes that answer: list those that hold leases, and close one that will not come back."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, func, select

from interlace.errors import NotFound
from interlace.ledger import bank
from interlace.ledger.escrow import Worker
from interlace.ledger.operations.operation import Operation
from interlace.ledger.operations.words import Input, Nothing, Word, time, usd
from interlace.ledger.registry import Registry
from interlace.ledger.schema import leases


class WorkerNamed(Input, frozen=True, kw_only=True):
    """Which worker, by its id."""

    worker: Word


class WorkerView(msgspec.Struct, frozen=True, kw_only=True):
    """A process that answers, and what it holds of budgets. `machine`: the installation it belongs to."""

    id: str
    epoch: int
    machine: str
    pid: int
    started_at: str
    held_nanos: int
    held_usd: str


def list_workers(registry: Registry, _: Nothing) -> list[WorkerView]:
    """Those that are not closed."""
    return registry.store.read(_views)


def close_worker(registry: Registry, given: WorkerNamed) -> WorkerView:
    """Take back what a worker holds: its machine will not come back, or not soon. Should it live, it takes on nothing
    from then on; what it has done is recorded all the same."""

    def work(connection: Connection) -> WorkerView:
        view = next((view for view in _views(connection) if view.id == given.worker), None)
        if view is None:
            raise NotFound(f"There is no worker {given.worker}. See: interlace workers list", param="worker")
        there = Worker(view.id, view.epoch)
        bank.bury(connection, there, now=registry.clock.now(), why="an operator closed it")
        return view

    return registry.store.write(work)


def _views(connection: Connection) -> list[WorkerView]:
    query = select(leases.c.worker_id, func.sum(leases.c.nanos)).where(leases.c.scope == "org")
    held = {id: int(nanos) for id, nanos in connection.execute(query.group_by(leases.c.worker_id))}
    return [
        WorkerView(
            id=row.id,
            epoch=row.epoch,
            machine=row.machine,
            pid=row.pid,
            started_at=time(row.started_at),
            held_nanos=held.get(row.id, 0),
            held_usd=usd(held.get(row.id, 0)),
        )
        for row in bank.living(connection)
    ]


WORKERS = (
    Operation("workers.list", "GET", "/workers", "The processes that answer.", Nothing, list[WorkerView], list_workers),
    Operation(
        "workers.close", "POST", "/workers/{worker}/close", "Take back what a worker holds that will not come back.",
        WorkerNamed, WorkerView, close_worker,
    ),
)  # fmt: skip
