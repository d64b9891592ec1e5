"""Plans and prices of another load of the configuration, taken over while the ledger is open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from interlace.config import PlanSettings, Settings
from interlace.ledger import Price, Registry
from tests.support.prices import costing
from tests.support.stores import placed

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """An open ledger whose file prices `m` and `gone`, and has a plan."""
    prices = (costing("m", 2, 5), costing("gone", 1, 1))
    settings = Settings(home=tmp_path, prices=prices, plans=(PlanSettings(name="gold", rpm=1),))
    with closing(Registry.open(placed(settings), {})) as opened:
        yield opened


def test_prices_and_plans_follow_the_file(registry: Registry) -> None:
    """Were any of them left as it was, the file would say one thing and the bill another."""
    changed = Settings(prices=(costing("m", 3, 5),), plans=(PlanSettings(name="gold", rpm=7), PlanSettings(name="new")))
    registry.follow(changed)
    now = registry.clock.now()
    price = registry.directory.price("m", now)
    assert price is not None
    assert price.prompt == 3 * 10**6
    assert registry.directory.price("gone", now) is None
    plans = {plan.name: plan.rates.rpm for plan in registry.directory.plans.values()}
    assert plans == {"gold": 7, "new": None}


def test_a_model_with_requests_left_keeps_its_price(registry: Registry) -> None:
    """Were it retired at once, a request that waits for its turn would be refused for having no price."""
    registry.follow(Settings(prices=(costing("m", 2, 5),)), keep={"gone"})
    assert registry.directory.price("gone", registry.clock.now()) is not None
    registry.follow(Settings(prices=(costing("m", 2, 5),)))
    assert registry.directory.price("gone", registry.clock.now()) is None


def test_there_is_no_moment_without_a_price(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries are put one by one while requests look them up: were an old price retired before the new one is known, a
    request would be refused for having none."""
    directory, put, seen = registry.directory, registry.directory.put, set()

    def watched(entry: object) -> None:
        put(entry)  # type: ignore[arg-type] # an entry
        price = directory.price("m", registry.clock.now())
        assert isinstance(price, Price)
        seen.add(price.prompt)

    monkeypatch.setattr(directory, "put", watched)
    registry.follow(Settings(prices=(costing("m", 3, 5),)))
    assert max(seen) == 3 * 10**6
