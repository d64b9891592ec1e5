"""Plans: create, list, show, set. Those that interlace.yaml names are its own, and only shown here."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import Connection

from interlace.errors import Conflict
from interlace.ledger.directory import Plan
from interlace.ledger.operations.operation import Operation
from interlace.ledger.operations.words import (
    Input,
    Nothing,
    Word,
    Words,
    checked_models,
    checked_name,
    find_plan,
    given_of,
    nanos_of,
    something_of,
    time,
    usd,
)
from interlace.ledger.registry import Entry, Registry, add, alter
from interlace.ledger.schema import plans

Requests = Annotated[int, msgspec.Meta(ge=0, le=10**9)]
Tokens = Annotated[int, msgspec.Meta(ge=0, le=10**12)]
Concurrency = Annotated[int, msgspec.Meta(ge=0, le=10**6)]
Priority = Annotated[int, msgspec.Meta(ge=-1000, le=1000)]
Length = Annotated[int, msgspec.Meta(ge=1, le=10**9)]


class NewPlan(Input, frozen=True, kw_only=True):
    """A plan to make: limits that hold for each key on it; null means no limit."""

    name: Word
    rpm: Requests | None = None
    tpm: Tokens | None = None
    concurrency: Concurrency | None = None
    budget_usd: Word | None = None
    priority: Priority = 0
    default_max_tokens: Length | None = None
    largest_max_tokens: Length | None = None
    models: Words | None = None


class PlanNamed(Input, frozen=True, kw_only=True):
    """Which plan, by name or id."""

    plan: Word


class PlanChanges(PlanNamed, frozen=True, kw_only=True):
    """What is to change of a plan."""

    name: Word | UnsetType = UNSET
    rpm: Requests | UnsetType | None = UNSET
    tpm: Tokens | UnsetType | None = UNSET
    concurrency: Concurrency | UnsetType | None = UNSET
    budget_usd: Word | UnsetType | None = UNSET
    priority: Priority | UnsetType = UNSET
    default_max_tokens: Length | UnsetType | None = UNSET
    largest_max_tokens: Length | UnsetType | None = UNSET
    models: Words | UnsetType | None = UNSET


class PlanView(msgspec.Struct, frozen=True, kw_only=True):
    """A plan. `source` is `file` for one that interlace.yaml names; it is `retired` once that names it no more, and
    still holds for the keys on it."""

    id: str
    name: str
    source: str
    state: Literal["active", "retired"]
    rpm: int | None
    tpm: int | None
    concurrency: int | None
    budget_usd: str | None
    budget_nanos: int | None
    priority: int
    default_max_tokens: int | None
    largest_max_tokens: int | None
    models: list[str] | None
    keys: int  # on it that are not revoked
    created_at: str


def create_plan(registry: Registry, given: NewPlan) -> PlanView:
    """Make a plan."""
    values = _columns(msgspec.structs.asdict(given))
    now = registry.clock.now()

    def work(connection: Connection) -> list[Entry]:
        _refuse_plan_named(registry, values["name"])
        return [add(connection, plans, source="db", created_at=now, **values)]

    return _view(registry, registry.change(work)[0])


def list_plans(registry: Registry, _: Nothing) -> list[PlanView]:
    """All plans, by name."""
    return [_view(registry, plan) for plan in sorted(registry.directory.plans.values(), key=lambda p: p.name)]


def show_plan(registry: Registry, given: PlanNamed) -> PlanView:
    """One plan."""
    return _view(registry, find_plan(registry, given.plan))


def set_plan(registry: Registry, given: PlanChanges) -> PlanView:
    """Change a plan; the next request of each key on it is held to it."""
    fields = given_of(**msgspec.structs.asdict(given))
    del fields["plan"]
    values = _columns(something_of(fields))

    def work(connection: Connection) -> list[Entry]:
        plan = find_plan(registry, given.plan)
        if plan.source == "file":
            raise Conflict(
                f"The plan {plan.name!r} is interlace.yaml's. Change it there and reload the server, or make one "
                "of another name.",
                param="plan",
                code="named_in_file",
            )
        if values.get("name", plan.name) != plan.name:
            _refuse_plan_named(registry, values["name"])
        return [alter(connection, plans, plan.id, **values)]

    return _view(registry, registry.change(work)[0])


def _columns(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields as the table has them."""
    values = dict(fields)
    if "name" in values:
        values["name"] = checked_name(values["name"])
    if "budget_usd" in values:
        values["budget_nanos"] = nanos_of(values.pop("budget_usd"))
    if values.get("models") is not None:
        values["models"] = json.dumps(checked_models(values["models"]))
    return values


def _refuse_plan_named(registry: Registry, name: str) -> None:
    for plan in registry.directory.plans.values():
        if plan.name == name:
            whose = "interlace.yaml names" if plan.source == "file" else "There is"
            raise Conflict(f"{whose} a plan {name!r} already. Choose another name.", param="name")


def _view(registry: Registry, plan: Entry) -> PlanView:
    assert isinstance(plan, Plan)
    keys = list(registry.directory.keys.values())
    return PlanView(
        id=plan.id,
        name=plan.name,
        source=plan.source,
        state="active" if plan.retired_at is None else "retired",
        rpm=plan.rates.rpm,
        tpm=plan.rates.tpm,
        concurrency=plan.rates.concurrency,
        budget_usd=usd(plan.budget_nanos),
        budget_nanos=plan.budget_nanos,
        priority=plan.priority,
        default_max_tokens=plan.default_max_tokens,
        largest_max_tokens=plan.largest_max_tokens,
        models=None if plan.models is None else list(plan.models),
        keys=sum(key.plan_id == plan.id and key.revoked_at is None for key in keys),
        created_at=time(plan.created_at),
    )


PLANS = (
    Operation("plans.create", "POST", "/plans", "Make a plan.", NewPlan, PlanView, create_plan),
    Operation("plans.list", "GET", "/plans", "All plans.", Nothing, list[PlanView], list_plans),
    Operation("plans.show", "GET", "/plans/{plan}", "One plan.", PlanNamed, PlanView, show_plan),
    Operation("plans.set", "PATCH", "/plans/{plan}", "Change a plan.", PlanChanges, PlanView, set_plan),
)
