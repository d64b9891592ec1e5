"""What a prompt finds in the cache of a real engine, through the whole gateway: told in each dialect's words, charged
at its own price where there is one, and never found by another organisation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.billing import tenants
from tests.support.gateway_thread import wait_for
from tests.support.served import CHAT, Served, served
from tests.support.tenants import Tenant
from tests.support.tiny import tiny_llama_safetensors

PROMPT, CACHED, ANSWER = 10, 1, 40  # nano-dollars a token
WORDS = "the cat sat on the mat and the dog sat on the log by the fire and so did I"  # 65 tokens and more


@pytest.fixture(scope="module")
def somebody(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Tenant]]:
    """The folder of a server, with two organisations in its ledger."""
    folder = tmp_path_factory.mktemp("money")
    return folder, tenants(folder, {}, {}, {})


@pytest.fixture(scope="module")
def there(somebody: tuple[Path, list[Tenant]]) -> Iterator[Served]:
    """Two models over one tiny checkpoint: `priced` has a price for what is cached, `plain` has none."""
    folder, _ = somebody
    checkpoint = str(tiny_llama_safetensors(folder / "tiny"))
    models = [
        {"name": n, "checkpoint": checkpoint, "cache_bytes": "2MiB", "precision": "f32"} for n in ("priced", "plain")
    ]
    amounts = {"prompt": f"{PROMPT / 1000}", "completion": f"{ANSWER / 1000}"}
    prices = [
        {"model": "priced", "since": "2020-01-01", "usd_per_million": {**amounts, "cached": f"{CACHED / 1000}"}},
        {"model": "plain", "since": "2020-01-01", "usd_per_million": amounts},
    ]
    with served(folder, models, prices=prices, workers=1) as server:
        yield server


def _ask(there: Served, who: Tenant, path: str, **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{there.url}{path}", json=body, headers=who.headers, trust_env=False, timeout=60)
    assert answer.status_code == httpx.codes.OK, answer.text
    if not body.get("stream"):
        return answer.json()  # type: ignore[no-any-return]
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ") and line != "data: [DONE]"]
    return next(chunk for chunk in map(json.loads, reversed(lines)) if chunk.get("usage"))  # type: ignore[no-any-return]


@pytest.mark.parametrize("model", ["priced", "plain"])
def test_what_was_found_is_told_and_charged(there: Served, somebody: tuple[Path, list[Tenant]], model: str) -> None:
    """The second time the same is asked, two blocks of it are found: every dialect says so, the bill has its price, and
    a price without one bills them as any other token. Another organisation finds nothing."""
    _, (who, other, _) = somebody
    asked: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": WORDS}],
        "max_tokens": 3,
        "temperature": 0,
    }
    streamed = asked | {"stream": True, "stream_options": {"include_usage": True}}
    chat, again = _ask(there, who, CHAT, **asked)["usage"], _ask(there, who, CHAT, **streamed)["usage"]
    message = _ask(there, who, "/v1/messages", **asked)["usage"]
    strange = _ask(there, other, CHAT, **asked)["usage"]
    prompt = chat["prompt_tokens"]
    found = (prompt - 1) // 32 * 32
    assert found >= 64
    assert [usage["prompt_tokens_details"]["cached_tokens"] for usage in (chat, again, strange)] == [0, found, 0]
    assert (message["cache_read_input_tokens"], message["input_tokens"]) == (found, prompt - found)
    events = [event for event in there.usage() if event.model == model]
    assert [event.tokens.cached for event in events] == [0, found, found, 0]
    for event in events:
        price = CACHED if model == "priced" else PROMPT
        cost = (prompt - event.tokens.cached) * PROMPT + event.tokens.cached * price + event.tokens.completion * ANSWER
        assert event.cost_nanos == cost
    wait_for(lambda: there.metric("interlace_engine_prefix_tokens_total", model=model) == 2 * found)
    assert there.metric("interlace_tokens_total", model=model, kind="cached") == 2 * found
