"""What administrators see of routes: how they are and how their models stand now, and what one would do with a request.

GET  /admin/v1/routes
POST /admin/v1/routes/explain
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from interlace.config import RouteSettings
from interlace.errors import NotFound
from interlace.gateway.calls import Ask
from interlace.gateway.openai_chat import parse_chat
from interlace.gateway.openai_completions import parse_completion
from interlace.gateway.openai_embeddings import parse_embedding
from interlace.gateway.pipeline import Pipeline
from interlace.gateway.routing import Standing, asked_of, models_of, seed_of
from interlace.gateway.routing.explain import Explanation, explain
from interlace.gateway.scoring import parse_rerank
from interlace.ledger import Registry
from interlace.ledger.operations import Operation
from interlace.ledger.operations.words import Input, Nothing, Word, Words, moment_of

_MOST_SEQUENCES = 1_000_000  # nothing runs, so nothing is bounded


class Explain(Input, frozen=True, kw_only=True):
    """A request as its endpoint would get it (a chat completion, where only `model` is there), and who would send it:
    left out, a key without a plan, without tags, now."""

    request: dict[str, Any]
    plan: Word = ""
    tags: Words = msgspec.field(default_factory=list)
    at: Word | None = None
    conversation: Word | None = None
    key: Word = ""


class RouteModel(msgspec.Struct, frozen=True, kw_only=True):
    """How a model of a route stands: `breaker` is closed, open, half_open (one request may probe it) or probing."""

    model: str
    engine: str
    state: str
    breaker: str
    first_token_seconds: float | None


class RouteView(msgspec.Struct, frozen=True, kw_only=True):
    """A route, as it is configured, and how its models stand now."""

    name: str
    policy: str
    settings: dict[str, Any]
    models: list[RouteModel]


def route_operations(pipeline: Pipeline) -> tuple[Operation, ...]:
    """The operations, on a running pipeline."""

    def every(_: Registry, __: Nothing) -> list[RouteView]:
        return [_view(pipeline, route) for route in pipeline.routes.routes.values()]

    def explained(registry: Registry, given: Explain) -> Explanation:
        ask = ask_of(given.request)
        if (route := pipeline.routes.routes.get(ask.model)) is None:
            if ask.model not in pipeline.routes.engines:
                raise NotFound(
                    f"There is no model or route {ask.model[:200]!r}.", param="model", code="model_not_found"
                )
            return direct(ask, given, registry.clock.now(), live=True)
        asked = asked_of(ask, given.plan, tuple(given.tags), _moment(given, registry.clock.now()))
        seed = seed_of(route, ask, given.key, given.conversation)
        return explain(route, asked, pipeline.standings(route, ask), seed, live=True)

    listed = "Routes, and how their models stand now."
    told = "What would become of a request, without asking any model."
    return (
        Operation("routes.list", "GET", "/routes", listed, Nothing, list[RouteView], every, looks_only=True),
        Operation("routes.explain", "POST", "/routes/explain", told, Explain, Explanation, explained, looks_only=True),
    )


def ask_of(request: dict[str, Any]) -> Ask:
    """The ask of a body, of whichever endpoint it is for; raises `InvalidRequest`."""
    parse: Any = parse_chat
    if "documents" in request:
        parse = parse_rerank
    elif "input" in request:
        parse = parse_embedding
    elif "prompt" in request:
        parse = parse_completion
    elif "messages" not in request:
        request = {**request, "messages": [{"role": "user", "content": ""}]}
    ask, _ = parse(msgspec.json.encode(request), "explained", _MOST_SEQUENCES)
    assert isinstance(ask, Ask)
    return ask


def direct(ask: Ask, given: Explain, now: int, *, live: bool) -> Explanation:
    """Of a model's own name: it is asked, and nobody else."""
    asked = asked_of(ask, given.plan, tuple(given.tags), now)
    return Explanation(
        model=ask.model,
        route=None,
        policy=None,
        live=live,
        needs=sorted(asked.needs),
        characters=asked.characters,
        steps=[],
        shadow=None,
    )


def offline(routes: Sequence[RouteSettings], local: dict[str, bool], given: Explain, now: int) -> Explanation:
    """The same without a server, as if every model were ready; `local`: the models there are, and which run here."""
    ask = ask_of(given.request)
    for route in routes:
        if route.name == ask.model:
            asked = asked_of(ask, given.plan, tuple(given.tags), _moment(given, now))
            models = {name: Standing(local=local[name]) for name in models_of(route)}
            seed = seed_of(route, ask, given.key, given.conversation)
            return explain(route, asked, models, seed, live=False)
    if ask.model not in local:
        raise NotFound(f"There is no model or route {ask.model[:200]!r}.", param="model", code="model_not_found")
    return direct(ask, given, now, live=False)


def _moment(given: Explain, now: int) -> int:
    return now if given.at is None else moment_of(given.at, "at")


def _view(pipeline: Pipeline, route: RouteSettings) -> RouteView:
    models = []
    for name in dict.fromkeys(models_of(route)):
        live = pipeline.routes.live[name]
        models.append(
            RouteModel(
                model=name,
                engine=pipeline.routes.kind(name),
                state=pipeline.routes.engines[name].health().state,
                breaker=live.breaker.state,
                first_token_seconds=live.first_tokens.percentile(50),
            )
        )
    return RouteView(name=route.name, policy=route.policy, settings=msgspec.to_builtins(route), models=models)
