"""Budgets, hang-ups, providers that lie and amounts at the edges, through a gateway in a process of its own."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.billing import ANSWER_NANOS, PROMPT_NANOS, Asked, Books, billing, priced, tenants, usd
from tests.support.provider import Provider, running_provider
from tests.support.served import Served, until
from tests.support.stores import on_both
from tests.support.tenants import Tenant

pytestmark = pytest.mark.usefixtures("store")

ANSWER = 20  # tokens of every answer here
CALLERS, ENOUGH = 100, 37
IDS = [5, 6, 7]  # a prompt of token ids, which anybody can count
HELD = 256 + 16 + len("r-00000")  # tokens that a prompt of one tag is held for: a bound, as nobody here can count it
FREE_COST = ANSWER * ANSWER_NANOS  # of an answer where the prompt is free
COST, HOLD = FREE_COST + PROMPT_NANOS, FREE_COST + HELD * PROMPT_NANOS
IDS_COST = FREE_COST + len(IDS) * PROMPT_NANOS


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """A provider that does what the model's name says."""
    with running_provider() as running:
        yield running


async def _ask_at_once(there: Served, callers: int, body: dict[str, Any], who: Tenant | None) -> list[Asked]:
    async with there.callers() as client:
        return await asyncio.gather(*(Asked(body, who).run(client) for _ in range(callers)))


# --- budgets under a burst ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("body", "budget", "cost", "passes", "times"),
    [
        pytest.param({"model": "free-prompt"}, ENOUGH * FREE_COST, FREE_COST, ENOUGH, 2, id="free prompt"),
        pytest.param({"model": "m", "prompt": IDS}, ENOUGH * IDS_COST, IDS_COST, ENOUGH, 2, id="counted prompt"),
        pytest.param({"model": "m"}, (ENOUGH - 1) * COST + HOLD, COST, ENOUGH, 2, id="room for the last one's bound"),
        # Less than the bound is left of the budget after 31: whether one more fits cannot be known before it ran.
        pytest.param({"model": "m"}, ENOUGH * COST, COST, (ENOUGH * COST - HOLD) // COST + 1, 1, id="no room for it"),
    ],
)
async def test_of_100_callers_exactly_as_many_pass_as_the_budget_pays(
    tmp_path: Path,
    provider: Provider,
    stream: bool,
    body: dict[str, Any],
    budget: int,
    cost: int,
    passes: int,
    times: int,
) -> None:
    """Time after time. Who checks and then spends lets more through; who refuses what running requests will give back
    lets fewer through."""
    books = Books(tmp_path)
    payers = tenants(tmp_path, *({"org_budget": budget} for _ in range(times)))
    prices = [priced("m"), priced("free-prompt", prompt=0)]
    with billing(tmp_path, provider, dict.fromkeys(("m", "free-prompt"), f"slow:{2 * ANSWER}"), prices=prices) as there:
        for who in payers:
            every = await _ask_at_once(there, CALLERS, {**body, "max_tokens": ANSWER, "stream": stream}, who)
            refused = (429, "insufficient_quota")
            assert Counter(asked.refusal for asked in every) == {(200, ""): passes, refused: CALLERS - passes}
            whole = {asked.id for asked in every if asked.whole}
            assert {event["id"] for event in books.events(who)} == whole
            assert (len(whole), books.spent(who)) == (passes, passes * cost)
    books.check()


@on_both
@pytest.mark.parametrize("processes", [1, 3], ids=["1 process", "3 processes"])
@pytest.mark.parametrize(
    "times", [2, pytest.param(50, marks=[pytest.mark.nightly, pytest.mark.timeout(3600)])], ids=lambda n: f"{n} times"
)
async def test_of_100_callers_exactly_37_pass_however_many_processes_and_times(
    tmp_path: Path, provider: Provider, processes: int, times: int
) -> None:
    """Each time on a budget of its own. Processes that each took what was left would let more through; one that kept
    what another waits for, fewer."""
    books = Books(tmp_path)
    payers = tenants(tmp_path, *({"org_budget": ENOUGH * FREE_COST} for _ in range(times)))
    prices = [priced("m", prompt=0)]
    with billing(tmp_path, provider, {"m": f"slow:{2 * ANSWER}"}, prices=prices, workers=processes) as there:
        for number, who in enumerate(payers):
            body = {"model": "m", "max_tokens": ANSWER, "stream": number % 2 == 0}
            every = await _ask_at_once(there, CALLERS, body, who)
            refused = (429, "insufficient_quota")
            assert Counter(asked.refusal for asked in every) == {(200, ""): ENOUGH, refused: CALLERS - ENOUGH}, number
            assert {event["id"] for event in books.events(who)} == {asked.id for asked in every if asked.whole}
            assert books.spent(who) == ENOUGH * FREE_COST
    books.check()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_without_max_tokens_many_run_at_once_and_none_overspends(
    tmp_path: Path, provider: Provider, stream: bool
) -> None:
    """Were a whole answer of unknown length held for each, a handful would hold the budget; and what no budget pays
    for must not be shown."""
    books = Books(tmp_path)
    payers = tenants(tmp_path, *({"org_budget": ENOUGH * FREE_COST} for _ in range(2)))
    model = f"slow:{ANSWER}"
    with billing(tmp_path, provider, [model], prices=[priced(model, prompt=0)]) as there:
        for who in payers:
            provider.most = 0
            every = await _ask_at_once(there, CALLERS, {"model": model, "stream": stream}, who)
            assert provider.most >= 30
            served = [asked for asked in every if asked.whole]
            assert {asked.answer.finish_reason for asked in served} <= {"stop", "length"}
            assert {asked.refusal for asked in every} <= {(200, ""), (429, "insufficient_quota")}
            shown = sum(asked.words for asked in served)
            assert books.spent(who) == shown * ANSWER_NANOS
            assert (ENOUGH - 1) * FREE_COST < books.spent(who) <= ENOUGH * FREE_COST
    books.check()


# --- callers that hang up ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_who_hangs_up_pays_for_what_was_made_and_holds_nothing(
    tmp_path: Path, provider: Provider, stream: bool
) -> None:
    """Before the first word, in the middle, and at every moment up to the end. At the end the rest of the budget can be
    had to the last nano-dollar, which would not be so if anything were held."""
    chance, books, tokens = random.Random(stream), Books(tmp_path), 4000
    (who,) = tenants(tmp_path, {"key_budget": tokens * ANSWER_NANOS})
    scripts = ("hang-first", "hang-head", "hang-mid", "hang-end", "slow:500", "slow:8", f"instant:{tokens}")
    prices = [priced(name, prompt=0) for name in scripts]
    with billing(tmp_path, provider, scripts, prices=prices, ledger={"wait_seconds": 2}) as there:
        body = {"max_tokens": ANSWER, "stream": stream}
        before = [Asked({**body, "model": model}, who) for model in ("hang-first", "hang-head")]
        during = [Asked({**body, "model": model, "max_tokens": 500}, who) for model in ("slow:500", "slow:500")]
        late = [Asked({**body, "model": model}, who) for model in ("hang-mid", "hang-end")]
        any_time = [Asked({**body, "model": "slow:8"}, who) for _ in range(40)]
        async with there.callers() as client:

            async def start(asked: Asked) -> asyncio.Task[Asked]:
                task = asyncio.create_task(asked.run(client))
                await until(lambda: len(provider.bodies(asked.body["model"])) > seen[asked.body["model"]])
                return task

            seen = {model: len(provider.bodies(model)) for model in scripts}
            tasks = [await start(asked) for asked in before]
            tasks += [asyncio.create_task(asked.run(client)) for asked in during + late]
            await until(lambda: all(provider.said[asked.tag] >= 5 for asked in during))
            await until(lambda: all(provider.said[asked.tag] for asked in late))
            for task in tasks:
                task.cancel()
            for asked in any_time:
                task = asyncio.create_task(asked.run(client))
                tasks.append(task)
                await asyncio.sleep(chance.uniform(0, 0.06))
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await until(lambda: there.metric("interlace_requests_running") == 0)
            own = await client.get("/v1/usage", headers=who.headers)
            assert [budget["reserved_nanos"] for budget in own.json()["standing"]["budgets"]] == [0]
            rest = tokens - books.spent(who) // ANSWER_NANOS
            last = await Asked({"model": f"instant:{tokens}", "max_tokens": rest, "stream": stream}, who).run(client)
            assert last.whole, last.answer
        assert there.metric("interlace_engine_running") == 0
    books.check()
    found = books.by_tag()
    for asked in [*before, *during, *late, *any_time]:
        (event,) = found.get(asked.tag, [None])
        if event is None:  # it had left before it was taken on
            assert not provider.said[asked.tag]
            continue
        assert asked.words <= event["completion_tokens"] <= provider.said[asked.tag]
        assert event["outcome"] == "client_gone" or (event["outcome"], event["completion_tokens"]) == ("finished", 8)
    for asked in [*before, *during, *late]:
        assert found[asked.tag][0]["outcome"] == "client_gone"
    assert [books.of(asked)["cost_nanos"] for asked in before] == [0, 0]
    assert [books.of(asked)["completion_tokens"] for asked in late] == [2, 1]
    assert books.spent(who) == tokens * ANSWER_NANOS


# --- providers that lie or die -----------------------------------------------------------------------------------

# Script: what becomes of it (None: no usage event, for nothing was done), its completion tokens, and whether estimated.
ENDS: dict[str, tuple[str, int, bool] | None] = {
    "instant:3": ("finished", 3, False),
    "no-usage": ("finished", 3, True),
    'usage:{"completion_tokens": -3}': ("finished", 3, True),
    'usage:{"prompt_tokens": 1, "completion_tokens": "9"}': ("finished", 3, True),
    'usage:{"prompt_tokens": 1, "completion_tokens": 1e300}': ("finished", 3, True),
    'usage:{"prompt_tokens": 1, "completion_tokens": 7}': ("finished", 7, False),
    "cut:first": ("failed", 0, False),
    "cut": ("failed", 2, True),
    "half-json": ("failed", 1, True),
    "error-inside:mid": ("failed", 1, True),
    "error-inside:busy": ("failed", 1, True),
    "status:500": ("failed", 0, False),
    "status:503": ("failed", 0, False),
    "status:401": ("failed", 0, False),
    "status:429": ("provider_refused", 0, False),
    "status:400": ("provider_refused", 0, False),
    "error-inside:limit": ("provider_refused", 0, False),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_what_a_provider_says_or_fails_to_say_is_recorded_as_it_was(
    tmp_path: Path, provider: Provider, stream: bool
) -> None:
    """Nobody pays for an answer that failed; what it used is written down all the same, once words have come, whatever
    the reason was; and what was counted here is not passed off as the provider's count."""
    books = Books(tmp_path)
    models = {f"m{i}": script for i, script in enumerate(ENDS)}
    (who,) = tenants(tmp_path, {"key_budget": 10 * HOLD})
    with billing(tmp_path, provider, models) as there:
        for name, script in models.items():
            async with there.callers() as client:
                asked = await Asked({"model": name, "max_tokens": ANSWER, "stream": stream}, who).run(client)
            expected, found = ENDS[script], books.by_tag().get(asked.tag, [])
            got = [(event["outcome"], event["completion_tokens"], bool(event["estimated"])) for event in found]
            assert got == ([] if expected is None else [expected]), script
            assert asked.whole == (expected is not None and expected[0] == "finished"), script
        rest = await _ask_at_once(there, 1, {"model": "m0", "max_tokens": ANSWER}, who)
        assert rest[0].whole, "something is still held"
    books.check()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_who_uses_more_than_its_limit_is_recorded_flagged_and_closes_the_budget(
    tmp_path: Path, provider: Provider, stream: bool
) -> None:
    """The provider's bill will say the truth, so ours must; and no budget may go on being overspent."""
    books, truth = Books(tmp_path), PROMPT_NANOS + 10 * FREE_COST
    (who,) = tenants(tmp_path, {"org_budget": HOLD + 10})
    with billing(tmp_path, provider, ["liar", "instant:1"]) as there:
        (asked,) = await _ask_at_once(there, 1, {"model": "liar", "max_tokens": ANSWER, "stream": stream}, who)
        event = books.of(asked)
        assert (asked.whole, asked.usage) == (True, (1, 10 * ANSWER))
        assert (event["cost_nanos"], event["overrun_nanos"]) == (truth, truth - HOLD)
        for model in ("liar", "instant:1"):
            (closed,) = await _ask_at_once(there, 1, {"model": model, "max_tokens": 1, "stream": stream}, who)
            assert closed.refusal == (429, "insufficient_quota")
        (free,) = await _ask_at_once(there, 1, {"model": "liar", "max_tokens": ANSWER}, None)
        assert (books.of(free)["cost_nanos"], books.of(free)["overrun_nanos"]) == (truth, 0), "no budget, no overrun"
    with billing(tmp_path, provider, ["liar", "instant:1"]) as there:
        (closed,) = await _ask_at_once(there, 1, {"model": "instant:1", "max_tokens": 1, "stream": stream}, who)
        assert closed.refusal == (429, "insufficient_quota"), "it opened again at the next start"
    books.check()


# --- amounts at the edges ----------------------------------------------------------------------------------------

LARGEST = 10**18
AMOUNTS = {
    "zero": "0",
    "least": "0.000000001",
    "odd": usd(2**53 + 1),  # no float is that number
    "largest": "1000000000",
}


async def test_amounts_at_the_edges_are_exact_to_the_nano_dollar(tmp_path: Path, provider: Provider) -> None:
    """The least price rounds up to one nano-dollar a request and never to nothing; beyond what a float can hold no
    digit is lost; and what is free needs no budget."""
    books = Books(tmp_path)
    prices = [
        {"model": name, "since": "2020-01-01", "usd_per_million": {"prompt": usd, "completion": usd}}
        for name, usd in AMOUNTS.items()
    ]
    nothing, three, plenty = tenants(
        tmp_path, {"org_budget": 0}, {"org_budget": 3}, {"org_budget": LARGEST, "key_budget": LARGEST}
    )
    models = dict.fromkeys(AMOUNTS, f"instant:{ANSWER}")
    with billing(tmp_path, provider, models, prices=prices) as there:

        async def statuses(name: str, who: Tenant | None, callers: int = 8) -> Counter[int]:
            every = await _ask_at_once(there, callers, {"model": name, "max_tokens": ANSWER}, who)
            return Counter(asked.answer.status for asked in every)

        assert await statuses("zero", nothing) == {200: 8}
        assert await statuses("least", nothing) == {429: 8}
        assert await statuses("least", three) == {200: 3, 429: 5}
        assert await statuses("zero", three) == {200: 8}
        assert (books.spent(nothing), books.spent(three)) == (0, 3)
        assert await statuses("odd", plenty, 1) == {200: 1}
        odd = -(-(1 + ANSWER) * (2**53 + 1) // 10**6)
        assert books.spent(plenty) == odd
        assert await statuses("largest", plenty, 1) == {200: 1}
        assert books.spent(plenty) == odd + (1 + ANSWER) * 10**12
    books.check()


async def test_a_claim_that_no_ledger_could_hold_stops_nobody_else(tmp_path: Path, provider: Provider) -> None:
    """A provider that claims nine quadrillion tokens at the highest price makes an amount beyond 64 bits: it is held to
    the largest amount there is, and the thread that writes for everybody lives."""
    books, claim = Books(tmp_path), {"prompt_tokens": 2**53 - 1, "completion_tokens": 2**53 - 1}
    prices = [
        {"model": name, "since": "2020-01-01", "usd_per_million": {"prompt": AMOUNTS[name], "completion": "1"}}
        for name in ("largest", "least")
    ]
    models = {"largest": f"usage:{json.dumps(claim)}", "least": "instant:1"}
    (who,) = tenants(tmp_path, {"org_budget": LARGEST})
    with billing(tmp_path, provider, models, prices=prices) as there:
        (mad,) = await asyncio.wait_for(_ask_at_once(there, 1, {"model": "largest", "max_tokens": 1}, who), 30)
        assert mad.whole
        assert books.of(mad)["cost_nanos"] == LARGEST
        (other,) = await asyncio.wait_for(_ask_at_once(there, 1, {"model": "least", "max_tokens": 1}, None), 30)
        assert other.whole
        (closed,) = await _ask_at_once(there, 1, {"model": "least", "max_tokens": 1}, who)
        assert closed.refusal == (429, "insufficient_quota")
        assert there.get("/healthz").status_code == httpx.codes.OK
    books.check()
