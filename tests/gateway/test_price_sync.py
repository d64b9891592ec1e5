"""`interlace prices sync`: what a public list says, as a diff, and never as anything but whole nano-dollars."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import yaml
from typer.testing import CliRunner

from interlace.cli import app
from interlace.config import ModelSettings
from interlace.gateway.price_proposals import Proposals, propose
from interlace.ledger import Price
from tests.support.prices import free_in_yaml
from tests.support.serving import free_port

types = pytest.importorskip("genai_prices.types")
snapshots = pytest.importorskip("genai_prices.data_snapshot")

AT = datetime(2026, 11, 20, tzinfo=UTC)
URL = "https://api.seller.example/v1"


def usd(text: str) -> Decimal:
    """As the package has an amount."""
    return Decimal(text)


def listing(prices: Any, **more: Any) -> Any:
    """The package's list with one seller, who sells `thing`."""
    model = types.ModelInfo(id="thing", match=types.ClauseEquals("thing"), prices=prices, **more)
    provider = types.Provider(id="seller", name="S", api_pattern=r"https://api\.seller\.example", models=[model])
    return snapshots.DataSnapshot(providers=[provider], from_auto_update=False)


def of(prices: Any, now: list[Price] | None = None, *, embeds: bool = False, **more: Any) -> Proposals:
    """What is proposed for the model `m` that is the seller's `thing`."""
    model = ModelSettings(name="m", engine="openai", base_url=URL, model="thing", embeds=embeds)
    return propose([model], {"m": now or []}, listing(prices, **more), AT)


PLAIN = {"input_mtok": usd("0.15"), "output_mtok": usd("0.6"), "cache_read_mtok": usd("0.075")}


def batch(**prices: Any) -> list[Any]:
    """Batches at these prices."""
    return [types.PriceVariant(when={"processing": "batch"}, prices=types.ModelPrice(**prices))]


# --- from the list to our kinds ----------------------------------------------------------------------------------


def test_every_kind_of_token_becomes_whole_nano_dollars() -> None:
    """Were a kind taken for another, or an amount through a float, every bill from then on would be wrong."""
    more = {"cache_write_mtok": usd("0.1875"), "output_reasoning_mtok": usd("0.700000001"), "requests_kcount": usd("5")}
    (one,) = of(types.ModelPrice(**PLAIN, **more)).proposed
    assert (one.model, one.listed, one.since, one.now, one.notes) == ("m", "seller/thing", None, None, ())
    price = one.price
    assert (price.prompt, price.cached, price.cache_write) == (150_000_000, 75_000_000, 187_500_000)
    assert (price.completion, price.reasoning, price.embedding) == (600_000_000, 700_000_001, None)
    assert price.request == 5_000_000
    assert all(isinstance(value, int) for value in (price.prompt, price.reasoning, price.request))


def test_an_embedding_model_is_charged_for_embeddings() -> None:
    """Were its price one of prompts, or asked to have answers, it would not be served or be billed by another kind."""
    (one,) = of(types.ModelPrice(input_mtok=usd("0.02")), embeds=True).proposed
    assert one.price.embedding == 20_000_000
    assert one.price.prompt is None
    assert of(types.ModelPrice(input_mtok=usd("0.02"))).not_said[0].reason.startswith("seller/thing: it has no price")


def test_finer_amounts_are_rounded_and_told() -> None:
    """The list has artefacts of floats in it: unrounded they could not be charged, rounded silently
    nobody would know."""
    (one,) = of(types.ModelPrice(input_mtok=usd("0.18000000000000002"), output_mtok=usd("0.0833333333333333"))).proposed
    assert (one.price.prompt, one.price.completion) == (180_000_000, 83_333_333)
    assert len(one.notes) == 2
    assert all("rounded to nine decimals" in note for note in one.notes)


@pytest.mark.parametrize(
    ("prices", "why"),
    [
        (
            lambda: types.ModelPrice(
                input_mtok=types.TieredPrices(base=usd("1.25"), tiers=[types.Tier(200_000, usd("2.5"))]),
                output_mtok=usd("10"),
            ),
            "depends on the length of the prompt: 1.25, 2.5 from 200,000 tokens on",
        ),
        (
            lambda: [
                types.ConditionalPrice(prices=types.ModelPrice(**PLAIN)),
                types.ConditionalPrice(
                    types.TimeOfDateConstraint(time(0, tzinfo=UTC), time(9, tzinfo=UTC)),
                    prices=types.ModelPrice(input_mtok=usd("1"), output_mtok=usd("1")),
                ),
            ],
            "depends on the hour of the day",
        ),
        (lambda: types.ModelPrice(**PLAIN, input_image_mtok=usd("7")), "input_image_mtok has a price of its own, 7"),
        (lambda: types.ModelPrice(**{**PLAIN, "input_mtok": 0.15}), "is no amount: 0.15"),
        (lambda: types.ModelPrice(**{**PLAIN, "input_mtok": usd("-1")}), "is no amount"),
        (lambda: types.ModelPrice(**{**PLAIN, "input_mtok": usd("NaN")}), "is no amount"),
        (lambda: types.ModelPrice(**PLAIN, requests_kcount=usd("0.0000001")), "finer than a nano-dollar"),
    ],
    ids=["tiers", "hours", "pictures", "a float", "negative", "NaN", "request"],
)
def test_what_our_kinds_cannot_say_is_no_proposal(prices: Callable[[], Any], why: str) -> None:
    """Were the nearest thing proposed instead, the bill would be a guess."""
    found = of(prices())
    assert (found.proposed, found.unchanged) == ((), ())
    (one,) = found.not_said
    assert one.known
    assert why in one.reason


def test_what_nobody_can_ask_for_is_told_and_changes_nothing() -> None:
    """A model that also sells searches would else have no price at all."""
    more = {"web_searches_kcount": usd("10"), "input_audio_mtok": usd("9")}
    (one,) = of(types.ModelPrice(**PLAIN, **more, input_image_mtok=usd("0.15"))).proposed
    assert set(one.notes) == {"without web searches", "without input audio"}


def test_a_cache_write_for_an_hour_is_proposed_its_own_price() -> None:
    """Billed as a write for five minutes, an hour's would cost less than its provider takes."""
    more = {"cache_write_mtok": usd("0.1875"), "cache_write_1h_mtok": usd("0.3")}
    (one,) = of(types.ModelPrice(**PLAIN, **more)).proposed
    assert (one.price.cache_write, one.price.cache_write_1h, one.notes) == (187_500_000, 300_000_000, ())


def test_the_batch_price_where_one_number_says_it() -> None:
    """Ours has one percentage for all kinds: anything else listed must not be squeezed into it."""
    halves = {"input_mtok": usd("0.075"), "output_mtok": usd("0.3"), "cache_read_mtok": usd("0.0375")}
    (one,) = of(types.ModelPrice(**PLAIN), price_variants=batch(**halves)).proposed
    assert (one.price.batch_percent, one.notes) == (50, ())
    del halves["cache_read_mtok"]
    (one,) = of(types.ModelPrice(**PLAIN), price_variants=batch(**halves)).proposed
    assert one.price.batch_percent == 100
    assert one.notes == ("batch price not taken, one number cannot say it: cached 100 %, completion 50 %, prompt 50 %",)
    (one,) = of(types.ModelPrice(**PLAIN), price_variants=batch(**halves, cache_write_mtok=usd("1"))).proposed
    assert one.price.batch_percent == 100, "a kind that only batches have is listed"


# --- beside what there is ----------------------------------------------------------------------------------------


def test_a_price_that_charges_the_same_is_no_change() -> None:
    """Were it proposed again, each sync would add a price that says nothing new."""
    same = Price(id=1, model="m", since=0, prompt=150_000_000, completion=600_000_000, cached=75_000_000,
                 cache_write=150_000_000, reasoning=600_000_000)  # fmt: skip
    found = of(types.ModelPrice(**PLAIN), [same])
    assert (found.proposed, found.unchanged) == ((), ("m",))
    other = msgspec.structs.replace(same, cached=74_999_999)
    assert of(types.ModelPrice(**PLAIN), [other]).proposed[0].now == other


def test_what_the_list_does_not_say_stays() -> None:
    """An amount for each request and a batch's share that somebody chose must not vanish by a sync."""
    now = Price(id=1, model="m", since=0, prompt=1, completion=1, request=77, batch_percent=60)
    (one,) = of(types.ModelPrice(**PLAIN), [now]).proposed
    assert (one.price.request, one.price.batch_percent) == (77, 60)


def test_a_price_that_is_announced_begins_on_its_day() -> None:
    """Were it applied at once, requests until then would be charged what they do not cost; were it left out, the day
    would pass unnoticed."""
    later = types.ModelPrice(**{**PLAIN, "input_mtok": usd("0.2")})
    prices = [
        types.ConditionalPrice(prices=types.ModelPrice(input_mtok=usd("9"), output_mtok=usd("9"))),
        types.ConditionalPrice(types.StartDateConstraint(date(2026, 1, 1)), prices=types.ModelPrice(**PLAIN)),
        types.ConditionalPrice(types.StartDateConstraint(date(2026, 12, 24)), prices=later),
    ]
    now, then = of(prices).proposed
    assert (now.since, now.price.prompt) == (None, 150_000_000)
    assert then.since == int(datetime(2026, 12, 24, tzinfo=UTC).timestamp()) * 10**6
    assert (then.now and then.now.prompt, then.price.prompt) == (150_000_000, 200_000_000)
    there = [msgspec.structs.replace(one.price, id=i, since=one.since or 0) for i, one in enumerate((now, then))]
    assert of(prices, there).unchanged == ("m",)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"base_url": "http://127.0.0.1:8000/v1"}, "nobody is known to sell at http://127.0.0.1:8000/v1"),
        ({"model": "nothing"}, "seller is not known to sell 'nothing'"),
        ({"base_url": "", "engine": "ollama"}, "nobody is known to sell what engine ollama serves"),
    ],
)
def test_what_is_not_listed_is_told(settings: dict[str, str], why: str) -> None:
    """A model of the same name that somebody else sells costs something else."""
    fields: dict[str, Any] = {"name": "m", "engine": "openai", "base_url": URL, "model": "thing", **settings}
    found = propose([ModelSettings(**fields)], {}, listing(types.ModelPrice(**PLAIN)), AT)
    assert [(one.known, one.reason) for one in found.not_said] == [(False, why)]


def test_the_real_list_can_be_said_or_is_told_why() -> None:
    """Every model of the installed package goes through: one that cannot be read would end the command in a bug."""
    real = snapshots.get_snapshot()
    proposed = odd = 0
    for provider in real.providers:
        for model in provider.models:
            one = SimpleNamespace(find_provider=lambda *_, p=provider: p,
                                  find_provider_model=lambda *_, p=provider, m=model: (p, m))  # fmt: skip
            settings = ModelSettings(name="m", engine="openai", base_url=URL, model=model.id)
            found = propose([settings], {}, one, AT)
            proposed += bool(found.proposed)
            odd += bool(found.not_said)
            assert bool(found.proposed) != bool(found.not_said)
    assert proposed > 3 * odd


# --- the command -------------------------------------------------------------------------------------------------

Run = Callable[..., Any]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """`interlace prices …` beside a configuration of real sellers' models."""
    for name in [name for name in os.environ if name.startswith("INTERLACE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("INTERLACE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-test")
    monkeypatch.chdir(tmp_path)
    openai = {"engine": "openai", "base_url": "https://api.openai.com/v1", "api_key": "${OPENAI_API_KEY}"}
    models = [
        {"name": "mini", "model": "gpt-4o-mini", **openai},
        {"name": "vectors", "model": "text-embedding-3-small", "embeds": True, **openai},
        {"name": "ours", "model": "x", "engine": "openai", "base_url": "http://127.0.0.1:1/v1"},
    ]
    config = {"port": free_port(), "models": models, "prices": free_in_yaml(["mini"])}
    Path("interlace.yaml").write_text(yaml.safe_dump(config))

    def run(*words: str, input: str | None = None) -> Any:
        return CliRunner().invoke(app, ["prices", *words], input=input, catch_exceptions=False)

    return run


def test_nothing_is_applied_without_a_yes(run: Run) -> None:
    """Were prices changed by looking at them, nobody could look."""
    shown = run("sync")
    assert shown.exit_code == 0
    assert re.search(r"mini +prompt +0\.00 +0\.15 +new +openai/gpt-4o-mini", shown.output)
    assert re.search(r"vectors +embedding +none +0\.02 +new", shown.output)
    assert "ours: nobody is known to sell at http://127.0.0.1:1/v1" in shown.output
    assert "interlace prices create ours" in shown.output
    assert "genai-prices 0." in shown.output
    assert "Nothing was applied" in shown.output
    assert run("sync", "--json").exit_code == 0
    listed = run("list", "--json").output
    assert '"0.15"' not in listed
    assert "vectors" not in listed


def test_yes_applies_and_a_second_time_finds_nothing(run: Run) -> None:
    """What was shown is what is charged from then on, made by the operation that `prices create` uses."""
    done = msgspec.json.decode(run("sync", "--yes", "--json").output)
    assert len(done["applied"]) == 2
    rows = {row["model"]: row for row in msgspec.json.decode(run("list", "--json", "--state", "current").output)
            if row["source"] == "db"}  # fmt: skip
    assert rows["mini"]["nanos_per_million"]["cached"] == 75_000_000
    assert rows["vectors"]["nanos_per_million"] == {
        "prompt": None, "cached": None, "cache_write": None, "cache_write_1h": None,
        "completion": None, "reasoning": None,
        "embedding": 20_000_000,
    }  # fmt: skip
    again = msgspec.json.decode(run("sync", "--yes", "--json").output)
    assert (again["proposed"], again["unchanged"], again["applied"]) == ([], ["mini", "vectors"], [])


def test_since_and_a_choice_of_models(run: Run) -> None:
    """A price that is to begin later must not begin now; models that were not named stay as they are."""
    assert run("sync", "mini", "--since", "2030-01-01", "--yes").exit_code == 0
    listed = msgspec.json.decode(run("list", "--json", "--state", "future").output)
    assert [(row["model"], row["since"]) for row in listed] == [("mini", "2030-01-01T00:00:00Z")]
    assert run("sync", "nobody").exit_code == 2
    assert run("sync", "--since", "soon").exit_code == 2


@pytest.mark.parametrize(("answers", "made"), [("\ny\n", 2), ("2030-01-01\nyes\n", 2), ("\nn\n", 0), ("", 0)])
def test_a_person_is_asked(answers: str, made: int, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a yes is a yes, and the date that was said is the one that holds."""
    monkeypatch.setattr("interlace.gateway.price_sync_commands._at_a_terminal", lambda: True)
    assert run("sync", input=answers).exit_code == 0
    rows = [row for row in msgspec.json.decode(run("list", "--json").output) if row["source"] == "db"]
    assert len(rows) == made
    assert {row["since"] for row in rows} <= {"2030-01-01T00:00:00Z"} or "2030" not in answers


def test_without_the_package_it_says_how_to_get_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An optional part that is missing must be told with its mend, not as a stack trace."""
    monkeypatch.setitem(__import__("sys").modules, "genai_prices", None)
    from interlace.errors import ConfigError

    with pytest.raises(ConfigError, match=r"pip install 'interlace\[prices\]'"):
        run("sync")
