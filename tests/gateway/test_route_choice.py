"""The choice of a route, for any route, request and state of the models."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlace.config import FallbackSettings, MemberSettings, PartSettings, RouteSettings, WhenSettings
from interlace.errors import EngineUnavailable, InvalidRequest
from interlace.gateway.routing import Asked, Standing, choose, models_of
from interlace.gateway.routing.choice import nobody, unmet
from interlace.ledger import Price

NAMES = ("a", "b", "c", "d", "e")
names = st.sampled_from(NAMES)

conditions = st.builds(
    WhenSettings,
    needs=st.lists(st.sampled_from(("chat", "tools", "json")), max_size=2).map(tuple),
    least_characters=st.integers(0, 50),
    most_characters=st.none() | st.integers(0, 100),
    plans=st.lists(st.sampled_from(("gold", "free")), max_size=1).map(tuple),
    tags=st.lists(st.sampled_from(("eu", "us")), max_size=1).map(tuple),
    hours=st.sampled_from((None, "08:00-18:00", "22:00-06:00")),
    weekdays=st.lists(st.sampled_from(("mon", "sun")), max_size=1).map(tuple),
)
whens = st.integers(0, 3).flatmap(lambda n: st.just(WhenSettings()) if n else conditions)  # most entries are for all
problems = st.integers(0, 3).flatmap(
    lambda n: st.none() if n else st.sampled_from((EngineUnavailable("It is loading."), InvalidRequest("No.")))
)
routes = st.builds(
    RouteSettings,
    name=st.just("r"),
    models=st.lists(st.builds(MemberSettings, names, st.integers(0, 5), whens), min_size=1, max_size=5).map(tuple),
    fallbacks=st.lists(st.builds(FallbackSettings, names, whens), max_size=3).map(tuple),
    policy=st.sampled_from(("weighted", "cheapest", "fastest", "open_first")),
    canary=st.just(PartSettings()) | st.builds(PartSettings, names, st.sampled_from((0.0, 50.0, 100.0))),
    shadow=st.just(PartSettings()) | st.builds(PartSettings, names, st.sampled_from((0.0, 50.0, 100.0))),
)
asks = st.builds(
    Asked,
    needs=st.frozensets(st.sampled_from(("chat", "tools", "json"))),
    characters=st.integers(0, 120),
    plan=st.sampled_from(("", "gold", "free")),
    tags=st.frozensets(st.sampled_from(("eu", "us"))),
    moment=st.integers(1_700_000_000_000_000, 1_700_600_000_000_000),
)
standings = st.fixed_dictionaries(
    {
        name: st.builds(
            Standing,
            local=st.booleans(),
            problem=problems,
            breaker=st.sampled_from(("closed", "open", "half_open", "probing")),
            price=st.none() | st.builds(lambda p: Price(model="m", since=0, prompt=p, completion=p), st.integers(0, 9)),
            first_token_seconds=st.none() | st.floats(0.01, 9),
        )
        for name in NAMES
    }
)
seeds = st.text(max_size=8)


@settings(max_examples=400, deadline=None)
@given(routes, asks, standings, seeds)
def test_who_may_be_asked_is_asked_once_and_who_may_not_never(
    route: RouteSettings, asked: Asked, models: dict[str, Standing], seed: str
) -> None:
    """The same facts choose the same; no model twice; none that cannot, none whose conditions do not hold; whoever is
    taken for broken after all others; and only local answers with somebody behind them are judged."""
    choice = choose(route, asked, models, seed)
    assert choose(route, asked, models, seed) == choice
    order = [step.model for step in choice.steps]
    assert len(order) == len(set(order))
    may = {one.model for one in route.models if not unmet(one.when, asked) and one.weight}
    may |= {one.model for one in route.fallbacks if not unmet(one.when, asked)}
    able = {name for name in may if models[name].problem is None}
    assert able <= set(order) <= able | {route.canary.model}
    assert all(models[name].problem is None for name in order)
    broken = [models[step.model].breaker in {"open", "probing"} for step in choice.steps]
    assert broken == sorted(broken) == [step.broken for step in choice.steps]
    for step in choice.steps:
        assert step.judged == (route.policy == "open_first" and models[step.model].local and step != choice.steps[-1])
    assert {one.model for one in choice.passed_over}.isdisjoint(order)
    assert {*order, *(one.model for one in choice.passed_over), route.shadow.model, route.canary.model, ""} >= {
        *models_of(route)
    }
    if not order:
        assert nobody(choice).message
    if choice.shadow is not None:
        assert models[choice.shadow].problem is None
        assert choice.shadow == route.shadow.model


def _all_well(*names: str) -> dict[str, Standing]:
    return {name: Standing() for name in names}


def test_each_model_gets_its_share() -> None:
    """Within what chance allows over ten thousand requests."""
    members = (MemberSettings("a", 6), MemberSettings("b", 3), MemberSettings("c", 1))
    route = RouteSettings("r", members)
    first = Counter(choose(route, Asked(), _all_well("a", "b", "c"), str(i)).steps[0].model for i in range(10_000))
    assert abs(first["a"] - 6000) < 250
    assert abs(first["b"] - 3000) < 250
    assert abs(first["c"] - 1000) < 250


def test_who_leaves_moves_only_its_own_conversations() -> None:
    """Were the draws made by position, one model's outage would empty every other model's prompt cache."""
    members = tuple(MemberSettings(name) for name in NAMES)
    well = _all_well(*NAMES)
    ill = well | {"c": Standing(problem=EngineUnavailable("It is loading."))}
    route = RouteSettings("r", members)
    for seed in map(str, range(500)):
        before, after = (choose(route, Asked(), models, seed).steps[0].model for models in (well, ill))
        assert before in {after, "c"}


def test_parts_get_their_percent() -> None:
    """A canary of five per cent is on trial with five per cent, and not with all of one caller's requests or none."""
    route = RouteSettings("r", (MemberSettings("a"),), canary=PartSettings("b", 5), shadow=PartSettings("c", 20))
    choices = [choose(route, Asked(), _all_well("a", "b", "c"), str(i)) for i in range(10_000)]
    assert abs(sum(choice.steps[0].model == "b" for choice in choices) - 500) < 110
    assert abs(sum(choice.shadow == "c" for choice in choices) - 2000) < 200
    both = sum(choice.steps[0].model == "b" and choice.shadow == "c" for choice in choices)
    assert 50 < both < 160, "the two parts are drawn together"


@pytest.mark.parametrize(
    ("when", "moment", "holds"),
    [
        (WhenSettings(hours="08:00-18:00"), "2026-01-05T07:59:00", False),
        (WhenSettings(hours="08:00-18:00"), "2026-01-05T08:00:00", True),
        (WhenSettings(hours="08:00-18:00"), "2026-01-05T17:59:59", True),
        (WhenSettings(hours="08:00-18:00"), "2026-01-05T18:00:00", False),
        (WhenSettings(hours="22:00-06:00"), "2026-01-05T23:00:00", True),
        (WhenSettings(hours="22:00-06:00"), "2026-01-05T05:59:00", True),
        (WhenSettings(hours="22:00-06:00"), "2026-01-05T06:00:00", False),
        (WhenSettings(hours="08:00-18:00", time_zone="Africa/Nairobi"), "2026-01-05T05:30:00", True),
        (WhenSettings(weekdays=("mon",)), "2026-01-05T12:00:00", True),
        (WhenSettings(weekdays=("sun",), time_zone="America/New_York"), "2026-01-05T02:00:00", True),
        (WhenSettings(weekdays=("tue", "wed")), "2026-01-05T12:00:00", False),
    ],
)
def test_time_is_told_by_the_clock_of_the_zone(when: WhenSettings, moment: str, holds: bool) -> None:
    """A night rate that begins at eight in the morning would be worse than none."""
    micros = int(datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp()) * 10**6
    assert (unmet(when, Asked(moment=micros)) == "") == holds
