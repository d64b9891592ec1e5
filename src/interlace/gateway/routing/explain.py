"""What a route would do with a request, told step by step. Asks no model."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from interlace.config import RouteSettings
from interlace.gateway.routing.choice import choose, likely_nanos, unmet
from interlace.gateway.routing.facts import Asked, Standing
from interlace.money import show_usd


class Explained(msgspec.Struct, frozen=True, kw_only=True):
    """A model of the route. `place` counts from 1 in the order of asking; null: it is not asked, `why` says why not.
    `percent`: how many of a hundred such requests begin with it, by weight and canary; null where a policy decides.
    `likely_usd`: about what such a request costs there."""

    place: int | None
    model: str
    why: str
    percent: float | None
    breaker: str
    first_token_seconds: float | None
    likely_usd: str | None


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What would become of a request. `route` null: `model` is a model's own name, asked directly. `live`: by the state
    of the running server; else as if every model were ready. The shadow is asked as well, unseen."""

    model: str
    route: str | None
    policy: str | None
    live: bool
    needs: list[str]
    characters: int
    steps: list[Explained]
    shadow: str | None


def explain(
    route: RouteSettings, asked: Asked, models: Mapping[str, Standing], seed: str, *, live: bool
) -> Explanation:
    """The choice for one seed: another request without a conversation may draw otherwise, as `percent` says."""
    choice = choose(route, asked, models, seed)
    shares = _shares(route, asked, models)
    rows = [
        _row(place, step.model, _why(step.why, judged=step.judged, broken=step.broken), models, asked, shares)
        for place, step in enumerate(choice.steps, 1)
    ]
    rows += [_row(None, one.model, one.why, models, asked, shares) for one in choice.passed_over]
    return Explanation(
        model=route.name,
        route=route.name,
        policy=route.policy,
        live=live,
        needs=sorted(asked.needs),
        characters=asked.characters,
        steps=rows,
        shadow=choice.shadow,
    )


def _why(why: str, *, judged: bool, broken: bool) -> str:
    notes = [why, *(["its answer is judged"] if judged else []), *(["its breaker is open"] if broken else [])]
    return "; ".join(notes)


def _row(
    place: int | None, model: str, why: str, models: Mapping[str, Standing], asked: Asked, shares: Mapping[str, float]
) -> Explained:
    standing = models[model]
    return Explained(
        place=place,
        model=model,
        why=why,
        percent=shares.get(model) if place is not None else None,
        breaker=standing.breaker,
        first_token_seconds=standing.first_token_seconds,
        likely_usd=None if standing.price is None else show_usd(likely_nanos(standing, asked)),
    )


def _shares(route: RouteSettings, asked: Asked, models: Mapping[str, Standing]) -> dict[str, float]:
    """How many of a hundred such requests begin with each model, where weights decide."""
    if route.policy != "weighted":
        return {}
    weights: dict[str, int] = {}
    for member in route.models:
        well = models[member.model].problem is None and models[member.model].breaker in {"closed", "half_open"}
        if well and not unmet(member.when, asked):
            weights[member.model] = weights.get(member.model, 0) + member.weight
    canary = route.canary.percent if route.canary.model and models[route.canary.model].problem is None else 0.0
    total = sum(weights.values())
    shares = {model: (100 - canary) * weight / total for model, weight in weights.items() if total}
    if canary:
        shares[route.canary.model] = shares.get(route.canary.model, 0.0) + canary
    return {model: round(share, 2) for model, share in shares.items()}


def rows_of(explanation: Explanation) -> tuple[list[str], list[list[str]]]:
    """A table for people: headings and cells. Why somebody is passed over is a sentence, too long for a table."""
    headings = ["#", "MODEL", "WHY", "OF 100", "BREAKER", "FIRST TOKEN S", "ABOUT USD"]
    return headings, [_cells(row) for row in explanation.steps]


def _cells(row: Explained) -> list[str]:
    first = "" if row.first_token_seconds is None else f"{row.first_token_seconds:.3f}"
    percent = "" if row.percent is None else f"{row.percent:g}"
    why = row.why if row.place is not None else "passed over"
    return [str(row.place or "-"), row.model, why, percent, row.breaker, first, row.likely_usd or ""]
