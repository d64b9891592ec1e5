"""What is forgotten: the details of usage events (tags, endpoint, times), after a set number of days or when a project
is erased. Who, what and how much stay, and so do all sums.

Rows are found by reading, and emptied in small transactions on the writing thread, between the commits of requests that
settle: nobody waits for long.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, or_, select, update

from interlace.errors import LedgerUnavailable
from interlace.ledger.directory import Project
from interlace.ledger.registry import Registry, alter
from interlace.ledger.schema import event_tags, projects, usage_events
from interlace.ledger.store import Store

log = logging.getLogger(__name__)

PAGE = 20_000  # events looked for at once
BATCH = 500  # and emptied in one transaction
EVERY_SECONDS = 3600.0
LATE_US = 2 * 86_400 * 10**6  # a request that ran while its project was erased has been recorded by then

_DETAILS = ("endpoint", "latency_us", "first_token_us", "attempt_us")


@dataclass
class Retention:
    """The work of `ledger.details_days`, and what came late to erased projects. It remembers how far it got."""

    registry: Registry
    stop: threading.Event = field(default_factory=threading.Event)
    _through: str = ""

    def sweep(self) -> int:
        """Empty the details of events older than the setting allows; how many. May be called again and again."""
        days, now = self.registry.settings.ledger.details_days, self.registry.clock.now()
        emptied = 0
        if days:
            today = date.fromisoformat(self.registry.calendar.day(now))
            before = (today - timedelta(days=days)).isoformat()
            emptied = forget(
                self.registry.store, usage_events.c.day >= self._through, usage_events.c.day < before, stop=self.stop
            )
            if not self.stop.is_set():
                self._through = max(self._through, (today - timedelta(days=days + 1)).isoformat())
        for project in list(self.registry.directory.projects.values()):
            if project.erased_at is not None and project.erased_at > now - LATE_US:
                emptied += forget(self.registry.store, *_of_erased(project), stop=self.stop)
        return emptied

    async def keep(self) -> None:
        """Sweep at once and every hour, until cancelled."""
        try:
            while True:
                try:
                    if emptied := await asyncio.to_thread(self.sweep):
                        log.info("details of old usage events erased", extra={"fields": {"events": emptied}})
                except LedgerUnavailable as error:
                    log.warning("details of old usage events stay for now: %s", error.message)
                await asyncio.sleep(EVERY_SECONDS)
        finally:
            self.stop.set()  # a sweep under way ends after its batch


def erase_project(registry: Registry, project_id: str) -> int:
    """Empty the details of a project's events so far, and what it left in other rooms, and mark it as erased; how many
    events. A second time erases what has come since."""
    now = registry.clock.now()
    (project,) = registry.change(lambda connection: [alter(connection, projects, project_id, erased_at=now)])
    assert isinstance(project, Project)
    emptied = forget(registry.store, *_of_erased(project))
    for erase in registry.also_erase:
        erase(project_id)
    _truncate_log(registry.store)
    return emptied


def forget(store: Store, *which: ColumnElement[bool], stop: threading.Event | None = None) -> int:
    """Empty the details of the events that `which` names, batch by batch until `stop`; how many."""
    detailed = or_(*(usage_events.c[name].is_not(None) for name in _DETAILS))
    query = select(usage_events.c.id).where(*which, detailed).limit(PAGE)
    emptied = 0
    while ids := store.read(lambda connection: connection.scalars(query).all()):
        for start in range(0, len(ids), BATCH):
            if stop is not None and stop.is_set():
                return emptied
            batch = ids[start : start + BATCH]
            store.write(partial(_empty, ids=batch))
            emptied += len(batch)
    return emptied


def _empty(connection: Connection, ids: Sequence[str]) -> None:
    values: dict[str, Any] = dict.fromkeys(_DETAILS)
    connection.execute(delete(event_tags).where(event_tags.c.event_id.in_(ids)))
    connection.execute(update(usage_events).where(usage_events.c.id.in_(ids)).values(**values))


def _of_erased(project: Project) -> tuple[ColumnElement[bool], ...]:
    return usage_events.c.project_id == project.id, usage_events.c.started_us <= (project.erased_at or 0)


def _truncate_log(store: Store) -> None:
    """SQLite's write-ahead log still has pages as they were."""
    if store.engine.dialect.name != "sqlite":
        return
    with closing(store.engine.raw_connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
