"""The ledger: who may use what, what it costs, and a durable record of every request that ran.

The front door; what is heavy (SQLAlchemy) is imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interlace.ledger.book import Book
    from interlace.ledger.database import LedgerBusy
    from interlace.ledger.directory import Caller, Key, Organisation, Plan, Project, new_key
    from interlace.ledger.events import Attempt, UsageEvent
    from interlace.ledger.holds import Bound, Hold, Share, Tried, Used
    from interlace.ledger.ledger import Ledger, Shared
    from interlace.ledger.limits import Left, Limiter, Limits, Rates
    from interlace.ledger.linked import LinkedRegistry
    from interlace.ledger.mapped_limits import MappedLimits
    from interlace.ledger.outcomes import RULES, Outcome
    from interlace.ledger.prices import Price, Tokens
    from interlace.ledger.private_files import installation_of, make_private, read_private
    from interlace.ledger.redis_limits import RedisLimits
    from interlace.ledger.registry import Registry
    from interlace.ledger.retention import Retention
    from interlace.ledger.store import Store
    from interlace.ledger.usage import read_events
    from interlace.ledger.writing import PlainWrite, Write

# name → the module that has it
_HOMES = {
    "Attempt": "events",
    "Book": "book",
    "Bound": "holds",
    "Caller": "directory",
    "Hold": "holds",
    "Key": "directory",
    "LinkedRegistry": "linked",
    "MappedLimits": "mapped_limits",
    "Organisation": "directory",
    "PlainWrite": "writing",
    "Project": "directory",
    "Ledger": "ledger",
    "LedgerBusy": "database",
    "Left": "limits",
    "Limiter": "limits",
    "Limits": "limits",
    "Outcome": "outcomes",
    "Plan": "directory",
    "Price": "prices",
    "RULES": "outcomes",
    "RedisLimits": "redis_limits",
    "Rates": "limits",
    "Registry": "registry",
    "Retention": "retention",
    "Share": "holds",
    "Shared": "ledger",
    "Store": "store",
    "Tokens": "prices",
    "Tried": "holds",
    "UsageEvent": "events",
    "Used": "holds",
    "Write": "writing",
    "installation_of": "private_files",
    "make_private": "private_files",
    "new_key": "directory",
    "read_events": "usage",
    "read_private": "private_files",
}

__all__ = [
    "Attempt",
    "RULES",
    "Book",
    "Bound",
    "Caller",
    "Hold",
    "Key",
    "Ledger",
    "LedgerBusy",
    "Left",
    "Limiter",
    "Limits",
    "LinkedRegistry",
    "MappedLimits",
    "Organisation",
    "Outcome",
    "PlainWrite",
    "Plan",
    "Price",
    "Project",
    "Rates",
    "RedisLimits",
    "Registry",
    "Retention",
    "Share",
    "Shared",
    "Store",
    "Tokens",
    "Tried",
    "UsageEvent",
    "Used",
    "Write",
    "installation_of",
    "make_private",
    "new_key",
    "read_events",
    "read_private",
]


def __getattr__(name: str) -> Any:
    """Import a name of the front door from its module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
