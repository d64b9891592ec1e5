"""Scripted engines that think, refuse, call and fail, a gateway before them, and callers of its Responses API."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from interlace.config import GuardSettings, LimitSettings, ModelSettings, SecretSettings, Settings
from interlace.config.settings import ResponseSettings
from interlace.engines.fields import ALL_KEPT
from interlace.engines.types import Delta, Thought, ToolCallDelta
from tests.support.gateway_thread import Gateway, running_gateway, wait_for
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tenants import Tenant

PATH = "/v1/responses"
KEY = "sk-or-v1-" + "0123456789abcdef" * 4  # what a secret guard takes for a key
PIXEL = "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()


def call(index: int, arguments: str, *, name: str = "", signature: str = "") -> Delta:
    """A piece of a call; the first one has the name."""
    head = {"id": f"call_{index}", "name": name} if name else {}
    return Delta(tokens=1, tool_calls=(ToolCallDelta(index=index, arguments=arguments, signature=signature, **head),))


THINKER = (
    Delta(tokens=1, thought=Thought(text="Hm, ", id="rs_provider")),
    Delta(tokens=1, thought=Thought(text="France.")),
    Delta(thought=Thought(text="About ", summary=True)),
    Delta(thought=Thought(text="France", summary=True)),
    Delta(thought=Thought(summary=True)),
    Delta(thought=Thought(text="And more", summary=True)),
    Delta(thought=Thought(signature="sealed")),
    Delta(thought=Thought(redacted="hidden")),
    Delta(tokens=2, text="Paris"),
    Delta(tokens=1, text=", it is."),
    Delta(finish_reason="stop"),
)
REFUSER = (
    Delta(tokens=1, text="Well. "),
    Delta(tokens=1, text="I can", refused=True),
    Delta(tokens=1, text="not.", refused=True),
    Delta(finish_reason="stop"),
)
CALLER = (
    Delta(tokens=1, text="Let me see."),
    call(0, "", name="f"),
    call(1, '{"b"', name="g", signature="wanted back"),
    call(0, '{"a":'),
    call(1, ": 2}"),
    call(0, " 1}"),
    Delta(finish_reason="tool_calls"),
)


@contextmanager
def responding(**limits: Any) -> Iterator[Gateway]:
    """One engine for each way to answer; denied words, masked keys, short conversations, and these limits."""
    made = {
        "scripted": ScriptedEngine(fates=ALL_KEPT),
        "local": ScriptedEngine(),
        "thinker": ScriptedEngine(deltas=THINKER, fates=ALL_KEPT),
        "refuser": ScriptedEngine(deltas=REFUSER),
        "caller": ScriptedEngine(deltas=CALLER, fates=ALL_KEPT),
        "cut": ScriptedEngine(deltas=(call(0, '{"a":', name="f"), Delta(finish_reason="length"))),
        "silent": ScriptedEngine(deltas=(Delta(finish_reason="stop"),)),
        "leaky": ScriptedEngine(tokens=("Well", ", op", "en se", "same", " and", " more")),
        "telltale": ScriptedEngine(tokens=("It is ", KEY, ".")),
        "careless": ScriptedEngine(
            deltas=(
                Delta(tokens=1, thought=Thought(text=f"Mine is {KEY[:20]}")),
                Delta(tokens=1, thought=Thought(text=f"{KEY[20:]}, so.")),
                Delta(tokens=1, text="Hello"),
                Delta(finish_reason="stop"),
            )
        ),
        "forbidden": ScriptedEngine(
            deltas=(
                Delta(tokens=1, thought=Thought(text="So I say open ")),
                Delta(tokens=1, thought=Thought(text="sesame")),
                Delta(tokens=1, text="Hello"),
                Delta(finish_reason="stop"),
            )
        ),
        "broken": ScriptedEngine(fail_after=2),
        "held": ScriptedEngine(held=True),
        "loading": ScriptedEngine(state="loading"),
        "endless": ScriptedEngine(tokens=("word ",) * 3000, delay=0.002),
    }
    settings = Settings(
        home=Path("/nonexistent"),
        models=tuple(ModelSettings(name=name, checkpoint=name) for name in made),
        guards=GuardSettings(
            deny=("open sesame",),
            secrets_input=SecretSettings(api_key="mask"),
            secrets_output=SecretSettings(api_key="mask"),
        ),
        limits=LimitSettings(**{"body_bytes": 100_000, "body_seconds": 2, **limits}),
        responses=ResponseSettings(chain_turns=3, chain_bytes=20_000),
        drain_seconds=5,
    )
    with running_gateway(settings, made) as running:
        yield running


def post(gateway: Gateway, model: str, *, who: Tenant | None = None, path: str = "", **more: Any) -> httpx.Response:
    """Make a response, or post to a page of one."""
    headers = gateway.headers if who is None else who.headers
    body = None if path else {"model": model, "input": "Hi", **more}
    return httpx.post(gateway.url + PATH + path, json=body, headers=headers, trust_env=False, timeout=20)


def get(gateway: Gateway, path: str, *, who: Tenant | None = None) -> httpx.Response:
    """Retrieve."""
    headers = gateway.headers if who is None else who.headers
    return httpx.get(f"{gateway.url}{PATH}/{path}", headers=headers, trust_env=False, timeout=20)


def engine(gateway: Gateway, name: str) -> ScriptedEngine:
    """The engine behind a model."""
    found = gateway.engines[name]
    assert isinstance(found, ScriptedEngine)
    return found


def last_seen(gateway: Gateway, name: str) -> Any:
    """The request that an engine saw last."""
    return engine(gateway, name).seen[-1]


def ended(gateway: Gateway, id: str) -> dict[str, Any]:
    """The response, once it has ended."""
    answer: dict[str, Any] = {}

    def over() -> bool:
        answer.update(get(gateway, id).json())
        return answer["status"] not in {"queued", "in_progress"}

    wait_for(over)
    return answer
