"""What one caller sees of itself: its limits, what is left of them, and what is left of every budget that holds."""

from __future__ import annotations

import msgspec

from interlace.ledger.directory import Caller
from interlace.ledger.ledger import Ledger
from interlace.money import show_usd


class BudgetLeft(msgspec.Struct, frozen=True, kw_only=True):
    """A calendar month's budget of the organisation, project or key (the smaller of its own and its plan's).
    `remaining` is what neither is spent nor reserved by requests that run; never below zero."""

    scope: str
    name: str
    budget_nanos: int
    spent_nanos: int
    reserved_nanos: int
    remaining_nanos: int
    budget_usd: str
    spent_usd: str
    reserved_usd: str
    remaining_usd: str


class RateLeft(msgspec.Struct, frozen=True, kw_only=True):
    """A limit on any sixty seconds; `reset_seconds`: until all of it is free again, if nothing is asked."""

    limit: int
    remaining: int
    reset_seconds: float


class ConcurrencyLeft(msgspec.Struct, frozen=True, kw_only=True):
    """A limit on requests that run at once."""

    limit: int
    running: int


class LimitsLeft(msgspec.Struct, frozen=True, kw_only=True):
    """What the plan allows; null: no limit."""

    requests: RateLeft | None
    tokens: RateLeft | None
    concurrency: ConcurrencyLeft | None
    default_max_tokens: int | None
    largest_max_tokens: int | None
    models: list[str] | None


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """Who the caller is, and how it stands now. Budgets that do not bound are not told of: they tell of others."""

    key: str
    key_id: str
    plan: str | None
    project: str
    organisation: str
    month: str
    time_zone: str
    limits: LimitsLeft
    budgets: list[BudgetLeft]


async def standing(ledger: Ledger, caller: Caller) -> Standing:
    """How the caller stands; on the gateway's loop, where the counters are."""
    month = ledger.month()
    return Standing(
        key=caller.key.name,
        key_id=caller.key.id,
        plan=caller.plan.name or None,
        project=caller.project.name,
        organisation=caller.organisation.name,
        month=month,
        time_zone=ledger.registry.settings.ledger.time_zone,
        limits=await _limits(ledger, caller),
        budgets=await _budgets(ledger, caller, month),
    )


async def _limits(ledger: Ledger, caller: Caller) -> LimitsLeft:
    plan, running = caller.plan, await ledger.running(caller)
    rates = {
        name: RateLeft(limit=one.limit, remaining=one.remaining, reset_seconds=round(one.reset_seconds, 3))
        for name, one in ledger.left(caller).items()
    }
    most = plan.rates.concurrency
    return LimitsLeft(
        requests=rates.get("requests"),
        tokens=rates.get("tokens"),
        concurrency=None if most is None else ConcurrencyLeft(limit=most, running=running),
        default_max_tokens=plan.default_max_tokens,
        largest_max_tokens=plan.largest_max_tokens,
        models=_models(caller),
    )


def _models(caller: Caller) -> list[str] | None:
    """Those that key and plan both allow."""
    named = next((models for models in (caller.key.models, caller.plan.models) if models is not None), None)
    return None if named is None else [model for model in named if caller.may_use(model)]


async def _budgets(ledger: Ledger, caller: Caller, month: str) -> list[BudgetLeft]:
    found = []
    taken = await ledger.taken(caller.accounts(month))
    names = {"org": caller.organisation.name, "project": caller.project.name, "key": caller.key.name}
    for account in caller.accounts(month):
        budget = ledger.registry.directory.budget(account)
        if budget is None:
            continue
        spent, reserved = taken[account]
        nanos = {"budget": budget, "spent": spent, "reserved": reserved}
        nanos["remaining"] = max(0, budget - spent - reserved)
        amounts = {f"{name}_nanos": amount for name, amount in nanos.items()}
        dollars = {f"{name}_usd": show_usd(amount) for name, amount in nanos.items()}
        found.append(BudgetLeft(scope=account[0], name=names[account[0]], **amounts, **dollars))  # type: ignore[arg-type]
    return found
