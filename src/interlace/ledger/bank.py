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
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, func, insert, or_, select, update

from interlace.ledger.book import AccountKey
from interlace.ledger.escrow import Answer, Ask, Fenced, Need, Totals, Worker
from interlace.ledger.schema import api_keys, balances, leases, organisations, plans, projects, workers

TURN_US = 5_000_000  # who has not asked again for so long has lost its place in the queue

Budgets = dict[AccountKey, int | None]


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
    found = {key: _look(connection, worker, key, budget, asked.since, now) for key, budget in _budgets(connection, accounts)}
    hope = {key: None if at.budget is None else at.budget - at.spent for key, at in found.items()}
    share = 2 * len(living(connection))
    more = {key: _more(found[key], need, share) for key, need in asked.needs.items()}
    if any(left is not None and asked.least > left for left in hope.values()):
        verdict = "never"
    elif any(nanos is None for nanos in more.values()):
        verdict = "wait"
    else:
        verdict = "granted"
    for key, at in found.items():
        lack = max(0, asked.needs[key].least - at.granted) if verdict == "wait" else 0
        at.write(connection, worker, key, more[key] or 0 if verdict == "granted" else 0, lack, asked.since, now)
    return Answer(asked.number, verdict, {key: at.granted for key, at in found.items()}, hope)


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
            ahead = [other for other in rows if other is not row and (turn := _place(other, now)) and turn < (line or _END)]
            lacking = sum(other.wanted_nanos for other in ahead) - left
            if row.nanos > 0 and lacking > 0:
                called[Worker(row.worker_id, row.epoch)][key] = lacking
    return dict(called)


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

    def write(
        self, connection: Connection, worker: Worker, key: AccountKey, more: int, lack: int, since: int | None, now: int
    ) -> None:
        """Give `more`, or keep a place for what lacks."""
        self.granted += more
        waits = since is not None and lack > 0
        values: dict[str, Any] = {}
        if since is not None:
            values = {"wanted_nanos": lack, "wanted_since": since if waits else None, "renewed_at": now}
        if more:
            values |= {"granted_nanos": leases.c.granted_nanos + more, "nanos": leases.c.nanos + more}
        if self.there and values:
            connection.execute(update(leases).where(_mine(worker, key)).values(values))
        elif more or waits:
            new = {"worker_id": worker.id, "epoch": worker.epoch, "returned_nanos": 0, "wanted_nanos": 0}
            new |= dict(zip(("scope", "scope_id", "month"), key, strict=True)) | {"renewed_at": now} | values
            connection.execute(insert(leases).values(new | {"granted_nanos": more, "nanos": more}))


def _look(
    connection: Connection, worker: Worker, key: AccountKey, budget: int | None, since: int | None, now: int
) -> _At:
    rows, spent = _rows(connection, key)
    mine = next((row for row in rows if (row.worker_id, row.epoch) == (worker.id, worker.epoch)), None)
    turn = _END if since is None else (since, worker.id)
    kept = sum(row.wanted_nanos for row in rows if row is not mine and (place := _place(row, now)) and place < turn)
    left = None if budget is None else budget - spent - sum(row.nanos for row in rows) - kept
    return _At(budget, spent, left, 0 if mine is None else mine.granted_nanos, mine is not None)


def _more(at: _At, need: Need, share: int) -> int | None:
    """What is given of one account; None: not even the least is there."""
    lack, liked = max(0, need.least - at.granted), max(0, need.wanted - at.granted)
    if at.left is None:
        return liked
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


def _place(row: Row[Any], now: int) -> _Place | None:
    """Its place among those who wait for the account; None: it does not, or has not said so for long."""
    if row.wanted_since is None or abs(now - row.renewed_at) > TURN_US:
        return None
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
    theirs = or_(
        organisations.c.id.in_(ids["org"]), organisations.c.id.in_(of_project), organisations.c.id.in_(of_key)
    )
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
