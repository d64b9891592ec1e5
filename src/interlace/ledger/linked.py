"""The ledger of a worker: who may use what, and the counters of its own requests; the coordinator writes for it.

It reads the database itself, and writes there what belongs to no usage event and no tenant (files, batches, stored
responses). Usage events go to the coordinator, which commits those of all workers together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Never

from sqlalchemy import URL, Connection

from interlace.config import Settings
from interlace.ledger.book import AccountKey
from interlace.ledger.clock import Calendar, Clock, SystemClock
from interlace.ledger.database import database_url
from interlace.ledger.directory import Directory, KeyHasher, ensure_secret
from interlace.ledger.escrow import Draws
from interlace.ledger.events import UsageEvent
from interlace.ledger.registry import Entry, Registry
from interlace.ledger.store import Job, PlainWrite, Store, Write, plain

Send = Callable[[UsageEvent, list[PlainWrite], Draws | None], None]
"""Takes a usage event to whoever commits it."""


class LinkedStore(Store):
    """An open database that somebody else writes usage events into; `trouble` is what that one says."""

    def __init__(self, url: str | URL, send: Send) -> None:
        super().__init__(url)
        self._send = send
        self._compiled: dict[Any, Any] = {}

    def start(self) -> None:
        """There is no writing thread."""

    def close(self) -> None:
        """Close; what was sent is not ours to finish."""
        self.engine.dispose()

    def record(
        self, usage: UsageEvent, beside: tuple[Write | PlainWrite, ...] = (), draws: Draws | None = None
    ) -> None:
        """Send a usage event on its way; never raises, never waits."""
        self._send(usage, [plain(write, self.engine.dialect, self._compiled) for write in beside], draws)

    def _submit(self, job: Job) -> None:
        """On the caller's thread: SQLite gives one process after the other its turn."""
        job.run(self.engine)


@dataclass
class LinkedRegistry(Registry):
    """A worker's registry. Changes are the coordinator's, which tells of them."""

    @classmethod
    def link(
        cls, settings: Settings, send: Send, env: Mapping[str, str] | None = None, clock: Clock | None = None
    ) -> LinkedRegistry:
        """Everything but the directory, which is read once the coordinator tells of changes: `load`."""
        hasher = KeyHasher(ensure_secret(settings.home, os.environ if env is None else env))
        store = LinkedStore(database_url(settings), send)
        calendar = Calendar(settings.ledger.time_zone)
        return cls(store, Directory(), hasher, clock or SystemClock(), calendar, settings)

    def load(self) -> None:
        """Read the directory. Waits for the disk."""
        self.directory = self.store.read(Directory.load)

    def budget(self, account: AccountKey) -> int | None:
        """The budget of an account, by the directory as it is now."""
        return self.directory.budget(account)

    def put(self, entries: list[Entry]) -> None:
        """What the coordinator changed holds from now on."""
        for entry in entries:
            self.directory.put(entry)
        self.changed()

    def change(self, work: Callable[[Connection], list[Entry]]) -> Never:  # noqa: ARG002 - as the registry has it
        """Not here."""
        raise AssertionError("a worker asks the coordinator for changes")

    def follow(self, settings: Settings, keep: Collection[str] = ()) -> None:
        """The coordinator did, before it told of the new configuration."""
