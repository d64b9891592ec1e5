"""The thread that writes for everybody outlives what one event, or one moment, does to it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import select

from interlace.ledger.events import UsageEvent
from interlace.ledger.migrations import migrate
from interlace.ledger.outcomes import Outcome
from interlace.ledger.prices import Tokens
from interlace.ledger.schema import usage_events
from interlace.ledger.store import Store, sqlite_url

EVENT = UsageEvent(
    id="e", org_id="o", project_id="p", key_id="k", model="m", engine="openai", endpoint="chat",
    outcome=Outcome.FINISHED, price_id=1, tokens=Tokens(prompt=1), cost_nanos=1, day="2026-01-31", started_us=1,
    latency_us=1,
)  # fmt: skip


def test_an_event_that_cannot_be_written_takes_no_other_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A number beyond 64 bits is no error of the database's: nothing must wait for it for ever, nor be lost with it,
    and the log is the last place that has it."""
    written: list[str] = []
    enough = threading.Event()

    def note(events: Sequence[UsageEvent]) -> None:
        written.extend(event.id for event in events)
        if len(written) == 5:
            enough.set()

    with closing(Store(sqlite_url(tmp_path / "ledger.db"))) as store:
        store.durable = note
        for id, cost in (("a", 1), ("b", 2**70), ("c", 3), ("d", 2**63)):
            store.record(msgspec.structs.replace(EVENT, id=id, cost_nanos=cost))
        with store.engine.begin() as connection:
            migrate(connection)
        store.start()
        store.write(lambda _: None)
        store.record(msgspec.structs.replace(EVENT, id="e"))
        assert enough.wait(20), written
        assert sorted(store.read(lambda c: list(c.scalars(select(usage_events.c.id))))) == ["a", "c", "e"]
    lost = [record for record in caplog.records if record.levelname == "CRITICAL"]
    assert [one["id"] for record in lost for one in record.__dict__["fields"]["usage"]] == ["b", "d"]
