"""The auditor finds slices of budgets that nobody may have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from interlace.ledger import Registry, bank
from interlace.ledger.audit import Finding, audit
from interlace.ledger.escrow import Ask, Need
from tests.support.ledgers import open_ledger, record, used
from tests.support.tenants import Tenant, tenant

NOW = 1_800_000_000_000_000


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """A real ledger."""
    with open_ledger(tmp_path) as opened:
        yield opened


@pytest.fixture
def who(registry: Registry) -> Tenant:
    """A tenant with an event, and slices at two workers."""
    there = tenant(registry, org_budget=10**9, key_budget=10**9)
    event = used(registry, there)
    record(registry, event)
    for place in ("w0", "w1"):
        worker = registry.store.write(lambda c, at=place: bank.enrol(c, at, machine="m", boot="b", pid=1, now=NOW))
        needs = {
            ("org", there.organisation.id, event.month): Need(500, 900),
            ("key", there.key.id, event.month): Need(500, 900),
        }
        answer = registry.store.write(lambda c, at=worker, n=needs: bank.ask(c, at, Ask(1, 500, n), now=NOW))
        assert answer.verdict == "granted"
    return there


def findings(registry: Registry) -> list[Finding]:
    """What the auditor says."""
    return registry.store.read(lambda connection: list(audit(connection)))


def test_slices_that_are_right_are_not_told_of(registry: Registry, who: Tenant) -> None:
    """An auditor that cries wolf is switched off."""
    assert findings(registry) == []


TAMPERED = {
    "below nothing": ("UPDATE leases SET nanos = -1 WHERE worker_id = 'w0'", "wrong", "more was drawn"),
    "too much": ("UPDATE leases SET nanos = granted_nanos + 1 WHERE worker_id = 'w0'", "wrong", "than was granted"),
    "given back": ("UPDATE leases SET returned_nanos = 1 WHERE worker_id = 'w1'", "wrong", "than was granted"),
    "of a closed one": ("UPDATE workers SET closed_at = 1 WHERE id = 'w0'", "wrong", "its worker was closed"),
    "of one before": ("UPDATE workers SET epoch = 2 WHERE id = 'w0'", "wrong", "its worker was closed"),
    "no number": ("UPDATE leases SET nanos = 0.5", "wrong", "is no integer"),
    "beyond": ("UPDATE organisations SET budget_nanos = 1500", "notice", "beyond the budget"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_is_wrong_with_a_slice_is_found(registry: Registry, who: Tenant, what: str) -> None:
    """Money that is held by nobody, or by two, would be noticed when a bill is disputed."""
    statement, severity, words = TAMPERED[what]
    registry.store.write(lambda connection: connection.execute(text(statement)))
    found = findings(registry)
    assert found
    assert {finding.severity for finding in found} == {severity}
    assert all(words in finding.what for finding in found)
