"""The durable side of budgets that several processes share: who works, and which slices each holds. See `escrow`.

Of every account and month, at every commit,

    spent in `balances` + the sum of `leases` ≤ budget

but for what a provider used beyond its limit, for what a worker did after it was closed (both are marked in the usage
event as overrun), and for budgets that were lowered since. Each function is a part of one transaction, its caller's.

    ask           slices go out: one transaction at a time for an organisation
    give_back     slices come in
    settle        in `store`, with the usage events: from a lease to what is spent, which leaves the sum as it is
    bury          the slices of a worker that is dead, or that an operator closes, come in; its epoch is fenced off

On PostgreSQL the organisation's row is what one transaction at a time holds; on SQLite there is one at a time anyway.
`now` is in microseconds, and decides nothing but whose turn it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, and_, bindparam, delete, func, insert, or_, select, update

from interlace.ledger.book import AccountKey
from interlace.ledger.escrow import Answer, Ask, Draws, Fenced, Need, Said, Totals, Worker
from interlace.ledger.events import UsageEvent
from interlace.ledger.schema import api_keys, balances, leases, organisations, plans, projects, workers

TURN_US = 5_000_000  # who has not asked again for so long has lost its place in the queue


# --- workers -----------------------------------------------------------------------------------------------------


def enrol(connection: Connection, place: str, *, machine: str, boot: str, pid: int, now: int) -> Worker:
    """Open a worker in a place, whose lock the caller holds: whoever sat there before is dead, and is buried."""
    there = connection.execute(select(workers.c.epoch).where(workers.c.id == place).with_for_update()).first()
    values = {"machine": machine, "boot": boot, "pid": pid, "started_at": now, "closed_at": None, "why": None}
    if there is None:
        connection.execute(insert(workers).values(id=place, epoch=1, **values))
        return Worker(place, 1)
    _free(connection, place)
    connection.execute(update(workers).where(workers.c.id == place).values(epoch=there.epoch + 1, **values))
    return Worker(place, there.epoch + 1)


def bury(connection: Connection, worker: Worker, *, now: int, why: str) -> bool:
    """Close a worker and take back its slices: it is provably dead, has ended its work, or an operator says so. What
    it comes with later is refused (`Fenced`), but for usage events. False: that was done before."""
    mine = (workers.c.id == worker.id) & (workers.c.epoch == worker.epoch) & workers.c.closed_at.is_(None)
    if connection.execute(update(workers).where(mine).values(closed_at=now, why=why)).rowcount == 0:
        return False
    _free(connection, worker.id)
    return True


def living(connection: Connection) -> list[Row[Any]]:
    """The workers that are not closed, as rows of `workers`."""
    return list(connection.execute(select(workers).where(workers.c.closed_at.is_(None)).order_by(workers.c.id)))


def _free(connection: Connection, place: str) -> None:
    mine = leases.c.worker_id == place
    order = (leases.c.scope, leases.c.scope_id, leases.c.month)
    connection.execute(select(leases.c.nanos).where(mine).order_by(*order).with_for_update()).all()
    connection.execute(delete(leases).where(mine))


def _admit(connection: Connection, worker: Worker) -> None:
    """Raise `Fenced` for a worker that is closed; one that is not stays open until this transaction ends."""
    query = select(workers.c.epoch, workers.c.closed_at).where(workers.c.id == worker.id)
    there = connection.execute(query.with_for_update(read=True)).first()
    if there is None or there.epoch != worker.epoch or there.closed_at is not None:
        raise Fenced(f"worker {worker.id} (epoch {worker.epoch}) is closed")


# --- slices ------------------------------------------------------------------------------------------------------


def ask(connection: Connection, worker: Worker, asked: Ask, *, now: int) -> Answer:
    """Grant a request all of its accounts, each between what it cannot do without and what it would like, or none.

    What it would like is given as far as there is plenty: at most a fair share of half of what is left. Raises
    `Fenced`.
    """
    _admit(connection, worker)
    accounts = sorted(asked.needs)
    _lock(connection, accounts)
    budgets = _budgets(connection, accounts)
    found = {key: _look(connection, worker, key, budget, asked.since, now) for key, budget in budgets}
    hope = {key: None if at.budget is None else at.budget - at.spent for key, at in found.items()}
    share = 2 * len(living(connection))
    more = {key: _more(found[key], need, share) for key, need in asked.needs.items()}
    never = any(best is not None and asked.least > best for best in hope.values())
    verdict: Said = "never" if never else "wait" if None in more.values() else "granted"
    granted = {}
    for key, at in found.items():
        lack = max(0, asked.needs[key].least - at.granted) if verdict == "wait" else None
        place = {} if asked.since is None else _kept_place(asked.since, lack, now)
        given = more[key] or 0 if verdict == "granted" else 0
        granted[key] = at.granted + given
        if at.there:
            _change(connection, worker, key, given, place)
        elif given or lack:
            _open(connection, worker, key, given, place)
    return Answer(asked.number, verdict, granted, hope)


def give_back(connection: Connection, worker: Worker, totals: Totals) -> None:
    """Take slices back: `totals` are what the worker has given back of each account since it began, with this. Twice
    is once, and an earlier total after a later one is nothing. Raises `Fenced`."""
    _admit(connection, worker)
    for key, total in sorted(totals.items()):
        mine = _mine(worker, key)
        row = connection.execute(select(leases.c.returned_nanos, leases.c.nanos).where(mine).with_for_update()).first()
        if row is not None and total > row.returned_nanos:
            values = {"returned_nanos": total, "nanos": leases.c.nanos - (total - row.returned_nanos)}
            connection.execute(update(leases).where(mine).values(values))


def drop(connection: Connection, worker: Worker, accounts: Iterable[AccountKey]) -> None:
    """Nobody waits for these at the worker any more. Raises `Fenced`."""
    _admit(connection, worker)
    for key in sorted(accounts):
        connection.execute(update(leases).where(_mine(worker, key)).values(wanted_nanos=0, wanted_since=None))


def holdings(connection: Connection, worker: Worker) -> Totals:
    """What was granted to the worker since it began: it may not have heard of all of it. Raises `Fenced`."""
    _admit(connection, worker)
    mine = (leases.c.worker_id == worker.id) & (leases.c.epoch == worker.epoch)
    rows = connection.execute(select(leases).where(mine))
    return {(row.scope, row.scope_id, row.month): row.granted_nanos for row in rows}


def taken(connection: Connection, accounts: Iterable[AccountKey]) -> list[tuple[AccountKey, int, dict[Worker, int]]]:
    """What is spent of each account, and what each worker holds of it, as of one moment for each."""
    found = []
    for key in accounts:
        rows, spent = _rows(connection, key)
        found.append((key, spent, {Worker(row.worker_id, row.epoch): int(row.nanos) for row in rows}))
    return found


def recalls(connection: Connection, *, now: int) -> dict[Worker, Totals]:
    """Of each worker that holds slices: what requests lack that have waited longer at other workers, beyond what lies
    in the bank. It is to give that back as far as it is free; one that is not named here, nothing."""
    waiting = list(connection.execute(select(leases).where(_in_turn(now), leases.c.wanted_nanos > 0)))
    called: defaultdict[Worker, Totals] = defaultdict(dict)
    accounts = sorted({(row.scope, row.scope_id, row.month) for row in waiting})
    for key, budget in _budgets(connection, accounts):
        rows, spent = _rows(connection, key)
        if budget is None:
            continue
        left = max(0, budget - spent - sum(row.nanos for row in rows))
        for row in rows:
            line = _place(row, now)
            ahead = [other for other in rows if other is not row and _place(other, now) < line]
            lacking = sum(other.wanted_nanos for other in ahead) - left
            if row.nanos > 0 and lacking > 0:
                called[Worker(row.worker_id, row.epoch)][key] = lacking
    return dict(called)


# --- what was done ------------------------------------------------------------------------------------------------

DRAW = (
    update(leases)
    .where(
        leases.c.worker_id == bindparam("of_worker"),
        leases.c.epoch == bindparam("of_epoch"),
        leases.c.scope == bindparam("of_scope"),
        leases.c.scope_id == bindparam("of_id"),
        leases.c.month == bindparam("of_month"),
    )
    .values(nanos=leases.c.nanos - bindparam("drawn"))
)
"""What usage events take from one lease; changes no row where its worker was closed."""

DRAW_NAMES = ("drawn", "of_worker", "of_epoch", "of_scope", "of_id", "of_month")


def mark_fenced(connection: Connection, events: list[UsageEvent], draws: Mapping[str, Draws]) -> list[UsageEvent]:
    """The events, those of closed workers with as much of their cost marked as overrun as lies beyond a budget now,
    when they count as spent already. Nothing else is granted until the transaction ends."""
    open_ = {worker for worker in {one.worker for one in draws.values()} if _is_open(connection, worker)}
    late = {id for id, one in draws.items() if one.worker not in open_}
    accounts = {key for usage in events if usage.id in late for key in _payers(usage)}
    _lock(connection, accounts)
    beyond: dict[AccountKey, int] = {}
    for key, budget in _budgets(connection, sorted(accounts)):
        if budget is not None:
            rows, spent = _rows(connection, key)
            beyond[key] = spent + sum(row.nanos for row in rows) - budget
    marked = []
    for usage in events:
        if usage.id in late:
            over = max(0, min(usage.cost_nanos, max(beyond.get(key, 0) for key in _payers(usage))))
            for key in _payers(usage):
                if key in beyond:
                    beyond[key] -= over
            usage = msgspec.structs.replace(usage, overrun_nanos=max(usage.overrun_nanos, over))  # noqa: PLW2901
        marked.append(usage)
    return marked


def _is_open(connection: Connection, worker: Worker) -> bool:
    query = select(workers.c.closed_at).where(workers.c.id == worker.id, workers.c.epoch == worker.epoch)
    row = connection.execute(query).first()
    return row is not None and row.closed_at is None


def _payers(usage: UsageEvent) -> tuple[AccountKey, ...]:
    month = usage.month
    return ("org", usage.org_id, month), ("project", usage.project_id, month), ("key", usage.key_id, month)


# --- one account -------------------------------------------------------------------------------------------------

_Place = tuple[int, str]
_END: _Place = (2**63, "")


@dataclass(slots=True)
class _At:
    """One account, as `ask` finds it."""

    budget: int | None
    spent: int
    left: int | None  # neither spent nor leased nor kept for those who wait longer; None: any amount
    granted: int  # to the worker who asks
    there: bool  # whether it has a row


def _kept_place(since: int, lack: int | None, now: int) -> dict[str, int | None]:
    """The place of a request that lacks something, here or of another account, which is then 0 here; None: of none."""
    return {"wanted_nanos": lack or 0, "wanted_since": None if lack is None else since, "renewed_at": now}


def _change(connection: Connection, worker: Worker, key: AccountKey, more: int, place: dict[str, int | None]) -> None:
    """By how much, not to what: the worker's events may draw from it meanwhile."""
    values: dict[str, Any] = dict(place)
    if more:
        values |= {"nanos": leases.c.nanos + more, "granted_nanos": leases.c.granted_nanos + more}
    if values:
        connection.execute(update(leases).where(_mine(worker, key)).values(values))


def _open(connection: Connection, worker: Worker, key: AccountKey, nanos: int, place: dict[str, int | None]) -> None:
    values: dict[str, Any] = {"nanos": nanos, "granted_nanos": nanos, "returned_nanos": 0}
    values |= {"worker_id": worker.id, "epoch": worker.epoch, "scope": key[0], "scope_id": key[1], "month": key[2]}
    values |= {"wanted_nanos": 0, "renewed_at": 0} | place
    connection.execute(insert(leases).values(values))


def _look(
    connection: Connection, worker: Worker, key: AccountKey, budget: int | None, since: int | None, now: int
) -> _At:
    rows, spent = _rows(connection, key)
    mine = next((row for row in rows if (row.worker_id, row.epoch) == (worker.id, worker.epoch)), None)
    turn = _END if since is None else (since, worker.id)
    kept = sum(row.wanted_nanos for row in rows if row is not mine and _place(row, now) < turn)
    left = None if budget is None else budget - spent - sum(row.nanos for row in rows) - kept
    return _At(budget, spent, left, 0 if mine is None else mine.granted_nanos, mine is not None)


def _more(at: _At, need: Need, share: int) -> int | None:
    """What is given of one account; None: not even the least is there."""
    lack, liked = max(0, need.least - at.granted), max(0, need.wanted - at.granted)
    if at.left is None:
        return lack
    if lack > max(0, at.left):
        return None
    return max(lack, min(liked, at.left // share))


def _rows(connection: Connection, key: AccountKey) -> tuple[list[Row[Any]], int]:
    """The leases of an account and what is spent of it, as of one moment: one statement, since a settlement in between
    would be seen in neither."""
    scope, id, month = key
    at = balances.c.scope == scope, balances.c.scope_id == id, balances.c.month == month
    spent = select(balances.c.spent_nanos).where(*at)
    query = select(leases, func.coalesce(spent.scalar_subquery(), 0).label("spent"))
    rows = list(
        connection.execute(
            query.where(leases.c.scope == scope, leases.c.scope_id == id, leases.c.month == month).order_by(
                leases.c.worker_id, leases.c.epoch
            )
        )
    )
    return rows, int(rows[0].spent if rows else connection.execute(spent).scalar() or 0)


def _place(row: Row[Any], now: int) -> _Place:
    """Its place among those who wait for the account; `_END`: it does not, or has not said so for long."""
    if row.wanted_since is None or abs(now - row.renewed_at) > TURN_US:
        return _END
    return row.wanted_since, row.worker_id


def _in_turn(now: int) -> ColumnElement[bool]:
    return leases.c.wanted_since.is_not(None) & leases.c.renewed_at.between(now - TURN_US, now + TURN_US)


def _mine(worker: Worker, key: AccountKey) -> ColumnElement[bool]:
    return and_(
        leases.c.worker_id == worker.id,
        leases.c.epoch == worker.epoch,
        leases.c.scope == key[0],
        leases.c.scope_id == key[1],
        leases.c.month == key[2],
    )


# --- budgets -----------------------------------------------------------------------------------------------------


def _lock(connection: Connection, accounts: Iterable[AccountKey]) -> None:
    """Hold the organisation that the accounts are of, until the transaction ends."""
    ids = {scope: [id for at, id, _ in accounts if at == scope] for scope in ("org", "project", "key")}
    of_project = select(projects.c.org_id).where(projects.c.id.in_(ids["project"]))
    of_key = select(projects.c.org_id).join(api_keys, api_keys.c.project_id == projects.c.id)
    of_key = of_key.where(api_keys.c.id.in_(ids["key"]))
    theirs = or_(organisations.c.id.in_(ids["org"]), organisations.c.id.in_(of_project), organisations.c.id.in_(of_key))
    query = select(organisations.c.id).where(theirs).order_by(organisations.c.id)
    connection.execute(query.with_for_update(key_share=True)).all()


def _budgets(connection: Connection, accounts: Iterable[AccountKey]) -> list[tuple[AccountKey, int | None]]:
    """The budget of each; a key has the smaller of its own and its plan's."""
    return [(key, _budget(connection, key)) for key in accounts]


def _budget(connection: Connection, key: AccountKey) -> int | None:
    scope, id, _ = key
    if scope != "key":
        table = organisations if scope == "org" else projects
        return connection.execute(select(table.c.budget_nanos).where(table.c.id == id)).scalar()
    query = select(api_keys.c.budget_nanos, plans.c.budget_nanos.label("planned"))
    row = connection.execute(query.outerjoin_from(api_keys, plans).where(api_keys.c.id == id)).one()
    return min((nanos for nanos in row if nanos is not None), default=None)
