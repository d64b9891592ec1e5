"""Organisations, projects and keys for tests, put straight into an open ledger."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from interlace.ledger import Registry, new_key
from interlace.ledger.directory import Key, Organisation, Project, hint_of
from interlace.ledger.registry import Entry, add
from interlace.ledger.schema import api_keys, organisations, plans, projects

_numbers = itertools.count()


@dataclass(frozen=True)
class Tenant:
    """A key of its own project and organisation, and its text."""

    text: str
    key: Key
    project: Project
    organisation: Organisation

    @property
    def headers(self) -> dict[str, str]:
        """What a caller with the key sends."""
        return {"authorization": f"Bearer {self.text}"}


def tenant(
    registry: Registry,
    *,
    org_budget: int | None = None,
    project_budget: int | None = None,
    key_budget: int | None = None,
    scopes: tuple[str, ...] = ("inference",),
    models: tuple[str, ...] | None = None,
    beside: Tenant | None = None,
    org: str = "",
    **plan: Any,
) -> Tenant:
    """A fresh tenant; budgets in nano-dollars, and whatever a plan has. `beside`: only key and plan are fresh, in the
    project of that one. `org`: the organisation's name."""
    number, text, now = next(_numbers), new_key(), registry.clock.now()
    made: list[Entry] = []

    def work(connection: Connection) -> list[Entry]:
        if beside is None:
            named = {"name": org or f"org-{number}", "budget_nanos": org_budget}
            owner = add(connection, organisations, created_at=now, **named)
            project = add(connection, projects, org_id=owner.id, name="p", budget_nanos=project_budget, created_at=now)
        else:
            owner, project = beside.organisation, beside.project
        values = {"name": f"plan-{number}", "priority": 0, "source": "db", "created_at": now, **plan}
        tier = add(connection, plans, **values)
        key = add(
            connection,
            api_keys,
            project_id=project.id,
            plan_id=tier.id,
            name="k" if beside is None else f"k-{number}",
            digest=registry.hasher.digest(text),
            hint=hint_of(text),
            scopes=json.dumps(scopes),
            models=None if models is None else json.dumps(models),
            budget_nanos=key_budget,
            created_at=now,
        )
        made[:] = [owner, project, tier, key]
        return made

    registry.change(work)
    owner, project, _, key = made
    assert isinstance(owner, Organisation)
    assert isinstance(project, Project)
    assert isinstance(key, Key)
    return Tenant(text, key, project, owner)
