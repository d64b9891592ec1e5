"""Every administrative verb, once: the command line and the admin API are made from this table.

A verb checks what it is given, does its work in one change of the registry (which takes effect at once), and says what
there is now. Names, amounts and moments come as text, and are shown as text beside their ids and integers.
"""

from __future__ import annotations

from interlace.ledger.operations.keys import KEYS
from interlace.ledger.operations.operation import Operation
from interlace.ledger.operations.plans import PLANS
from interlace.ledger.operations.prices import PRICES
from interlace.ledger.operations.tenants import ORGS, PROJECTS
from interlace.ledger.operations.usage import USAGE, Period, UsageLine, UsageReport, summed
from interlace.ledger.operations.workers import WORKERS

OPERATIONS: dict[str, Operation] = {
    operation.name: operation for operation in (*ORGS, *PROJECTS, *KEYS, *PLANS, *PRICES, *USAGE, *WORKERS)
}

__all__ = ["OPERATIONS", "Operation", "Period", "UsageLine", "UsageReport", "summed"]
