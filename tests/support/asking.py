"""A remote engine, and what tests ask it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from interlace.config import ModelSettings, Settings
from interlace.engines.remote import RemoteEngine
from interlace.engines.types import Delta, Event, GenerateRequest, Message, Sampling
from interlace.gateway.serve import build_engine
from tests.support.gateway_thread import Gateway, running_gateway

OPEN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")  # what a caller that says nothing leaves open
KEY_NAME, KEY = "PROVIDER_KEY", "sk-very-secret-0123456789"


def remote_settings(url: str, model: str, **more: Any) -> ModelSettings:
    """Settings of a remote model, with short time-outs."""
    usual: dict[str, Any] = {"connect_seconds": 5, "first_token_seconds": 5, "between_tokens_seconds": 5}
    usual |= {"engine": "openai", "api_key": f"${{{KEY_NAME}}}"}
    return ModelSettings(name="far", base_url=url, model=model, **(usual | more))


@asynccontextmanager
async def remote(url: str, model: str, key: str = KEY, **more: Any) -> AsyncGenerator[RemoteEngine]:
    """A started engine, closed at the end."""
    engine = RemoteEngine(remote_settings(url, model, **more), {KEY_NAME: key})
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def chat(text: str = "hello out there", *, max_tokens: int | None = None, **more: Any) -> GenerateRequest:
    """A conversation of one message that leaves everything open."""
    given: dict[str, Any] = {
        "messages": (Message("user", text),),
        "sampling": Sampling(max_tokens=max_tokens),
        "unset": OPEN,
    }
    return GenerateRequest(id="r", **(given | more))


async def collect(engine: RemoteEngine, request: GenerateRequest) -> list[Event]:
    """All events of one answer."""
    async with aclosing(engine.generate(request)) as events:
        return [event async for event in events]


async def collect_into(events: list[Event], engine: RemoteEngine, request: GenerateRequest) -> None:
    """All events of one answer, those before an error too."""
    async with aclosing(engine.generate(request)) as coming:
        async for event in coming:
            events.append(event)


def text_of(events: list[Event], index: int = 0) -> str:
    """What one choice said."""
    return "".join(event.text for event in events if isinstance(event, Delta) and event.index == index)


def finishes(events: list[Event]) -> list[str]:
    """Why each choice ended, in order."""
    deltas = [event for event in events if isinstance(event, Delta) and event.finish_reason]
    return [str(delta.finish_reason) for delta in sorted(deltas, key=lambda delta: delta.index)]


def thought_of(events: list[Event]) -> str:
    """What was thought aloud."""
    return "".join(event.thought.text for event in events if isinstance(event, Delta) and event.thought)


def calls_of(events: list[Event]) -> list[tuple[str, str, str]]:
    """Id, name and arguments of each tool call."""
    calls: dict[int, list[str]] = {}
    for event in events:
        for piece in event.tool_calls if isinstance(event, Delta) else ():
            assert (piece.index in calls) == (piece.id is None), "id and name come with the first piece, once"
            call = calls.setdefault(piece.index, [piece.id or "", piece.name or "", ""])
            call[2] += piece.arguments
    return [(id, name, arguments) for _, (id, name, arguments) in sorted(calls.items())]


@contextmanager
def gateway_to(url: str, models: Mapping[str, str], key: str = KEY, **more: Any) -> Iterator[Gateway]:
    """A gateway whose models (public name → the provider's) all run on the server at `url`; what a model called
    `embedder…` makes is embeddings; what `hang…` is called is given up soon. `more` are further settings of each."""
    env, soon = {KEY_NAME: key}, {"first_token_seconds": 0.3, "between_tokens_seconds": 0.3}
    settings = [
        dataclasses.replace(
            remote_settings(
                url,
                model,
                embeds=name.startswith("embedder"),
                **(more | soon if model.startswith("hang") else more),
            ),
            name=name,
        )
        for name, model in models.items()
    ]
    engines = {one.name: build_engine(one, Path("/nonexistent"), env) for one in settings}
    with running_gateway(Settings(home=Path("/nonexistent"), models=tuple(settings), drain_seconds=5), engines) as made:
        yield made
        for engine in engines.values():
            asyncio.run_coroutine_threadsafe(engine.close(), made.loop).result(10)
