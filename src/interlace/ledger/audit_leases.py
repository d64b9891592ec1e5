"""The auditor's look at what several processes hold of budgets: each slice by itself, and all with what is spent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from sqlalchemy import Connection, select

from interlace.ledger.book import AccountKey
from interlace.ledger.schema import leases, workers


class Problem(NamedTuple):
    """What does not agree: of one worker's slice of an account, or of the account (`worker` empty)."""

    worker: str
    account: AccountKey
    what: str
    expected: str = ""
    found: str = ""


def problems_of_leases(connection: Connection) -> Iterator[Problem]:
    """What is wrong with any slice."""
    epochs = {row.id: (row.epoch, row.closed_at) for row in connection.execute(select(workers))}
    for row in connection.execute(select(leases)):
        account = (row.scope, row.scope_id, row.month)
        numbers = (row.nanos, row.granted_nanos, row.returned_nanos, row.wanted_nanos)
        if any(type(number) is not int for number in numbers):
            yield Problem(row.worker_id, account, "an amount is no integer", found=repr(numbers))
            continue
        epoch, closed_at = epochs.get(row.worker_id, (None, None))
        if closed_at is not None or epoch != row.epoch:
            yield Problem(row.worker_id, account, "its worker was closed", "no slice", f"{row.nanos} nano-dollars")
        if row.nanos < 0:
            yield Problem(row.worker_id, account, "more was drawn than was granted", "0 or more", str(row.nanos))
        if min(row.returned_nanos, row.wanted_nanos) < 0 or row.returned_nanos + row.nanos > row.granted_nanos:
            what = "more is there and was given back than was granted"
            yield Problem(row.worker_id, account, what, str(row.granted_nanos), f"{row.nanos} and {row.returned_nanos}")


def beyond_budgets(
    connection: Connection, budgets: Mapping[tuple[str, str], int], spent: Mapping[AccountKey, int]
) -> Iterator[Problem]:
    """Accounts of which more is spent and leased together than there is; not those where spending alone is too much,
    which is told with the balances."""
    sums: defaultdict[AccountKey, int] = defaultdict(int)
    for row in connection.execute(select(leases)):
        sums[row.scope, row.scope_id, row.month] += row.nanos
    for account, nanos in sorted(sums.items()):
        budget, there = budgets.get(account[:2]), spent.get(account, 0)
        if budget is not None and nanos > 0 and there <= budget < there + nanos:
            what = "spent and leased to workers together are beyond the budget; was it lowered?"
            yield Problem("", account, what, str(budget), f"{there} + {nanos}")
