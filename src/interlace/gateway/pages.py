"""The small pages: models, health, readiness, metrics, the OpenAPI document, and a word for who looks at `/`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive, Scope, Send

from interlace import __version__
from interlace.config import ModelSettings, RouteSettings
from interlace.engines.types import Capabilities, Engine
from interlace.errors import EngineUnavailable
from interlace.gateway.anthropic_models import ModelInfo, model_info, model_page
from interlace.gateway.http import JSON, Exchange, credential_of, send_whole
from interlace.gateway.metrics import CONTENT_TYPE, Metrics
from interlace.gateway.openapi import document
from interlace.gateway.pipeline import Pipeline
from interlace.gateway.routes import Routes
from interlace.gateway.styles import ANTHROPIC, Style
from interlace.gateway.wire import encode
from interlace.ledger import Caller

_HELLO = {
    "interlace": __version__,
    "base_url": "/v1",
    "models": "/v1/models",
    "openapi": "/openapi.json",
    "ready": "/readyz",
    "metrics": "/metrics",
}


@dataclass(frozen=True)
class Page:
    """An ASGI page from a plain function of the request that returns status, content type and body."""

    make: Callable[[Scope], tuple[int, bytes, bytes]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Answer."""
        await send_whole(send, *self.make(scope))


def hello_page() -> Page:
    """`/`: where things are."""
    body = encode(_HELLO)
    return Page(lambda _: (200, JSON, body))


def health_page() -> Page:
    """`/healthz`: this process is alive, as one that cannot answer is not."""
    return Page(lambda _: (200, JSON, b'{"status":"ok"}'))


def openapi_page() -> Page:
    """`/openapi.json`, made once."""
    body = encode(document())
    return Page(lambda _: (200, JSON, body))


@dataclass(frozen=True)
class MetricsPage:
    """`/metrics`, in Prometheus' text format: of all processes of the installation, where there are several."""

    metrics: Metrics
    of_all: Callable[[], Callable[[], Awaitable[bytes]] | None]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Answer."""
        ask = self.of_all()
        text = self.metrics.text() if ask is None else await ask()
        await send_whole(send, 200, CONTENT_TYPE.encode(), text)


def ready_page(routes: Routes, draining: Callable[[], bool]) -> Page:
    """`/readyz`: 200 once every model is ready; until then, and while draining, 503 that says what is missing. Anybody
    may look, so models that have an owner are not named."""

    def ready(_: Scope) -> tuple[int, bytes, bytes]:
        health = {name: engine.health() for name, engine in routes.bases.items()}
        good = not draining() and all(each.state == "ready" for each in health.values())
        status = "draining" if draining() else "ready" if good else "not ready"
        named = {name: each for name, each in health.items() if name not in routes.walls}
        models = {name: {"state": each.state, "detail": each.detail} for name, each in named.items()}
        return 200 if good else 503, JSON, encode({"status": status, "models": models})

    return Page(ready)


class ModelPages:
    """`/v1/models` and `/v1/models/{id}`: OpenAI's fields, and what a person wants to know besides; or Anthropic's, for
    who speaks so."""

    def __init__(self, pipeline: Pipeline, created: int, settings: Sequence[ModelSettings]) -> None:
        self._pipeline = pipeline
        self._created = created
        self._settings = {model.name: model for model in settings}
        self.all = Page(self._all)
        self.one = Page(self._one)

    def _all(self, scope: Scope) -> tuple[int, bytes, bytes]:
        caller = self._authenticate(scope)
        there = self._pipeline.routes
        names = [name for name in there.engines if there.shown(name, caller)]
        routes = [route for name, route in there.routes.items() if there.shown(name, caller)]
        if _style(scope) is ANTHROPIC:
            infos = [*map(self._model_info, names), *map(self._route_info, routes)]
            return 200, JSON, encode(model_page(scope, infos))
        models = [*map(self._model, names), *map(self._route, routes)]
        return 200, JSON, encode({"object": "list", "data": models})

    def _one(self, scope: Scope) -> tuple[int, bytes, bytes]:
        caller = self._authenticate(scope)
        name = scope["path_params"]["model"]
        if (route := self._pipeline.routes.route(name, caller)) is not None:
            told = self._route_info(route) if _style(scope) is ANTHROPIC else self._route(route)
            return 200, JSON, encode(told)
        self._pipeline.routes.find(name, caller)
        if _style(scope) is ANTHROPIC:
            return 200, JSON, encode(self._model_info(name))
        return 200, JSON, encode(self._model(name))

    def _route(self, route: RouteSettings) -> dict[str, Any]:
        """A route as a model: ready when one of its models is, and of their kind."""
        named = [*(member.model for member in route.models), *(fallback.model for fallback in route.fallbacks)]
        members = [self._model(name) for name in dict.fromkeys(named)]
        ready = next((one for one in members if one["state"] == "ready"), members[0])
        nothing = dict.fromkeys(("context_length", "dimensions", "precision", "checkpoint"))
        shown = {name: ready[name] for name in ("object", "created", "owned_by", "state", "kind")}
        return {"id": route.name, **shown, **nothing, "engine": "route", "models": [one["id"] for one in members]}

    def _authenticate(self, scope: Scope) -> Caller:
        return self._pipeline.ledger.authenticate(credential_of(scope))

    def _model_info(self, name: str) -> ModelInfo:
        return model_info(name, self._created, _known(self._pipeline.routes.engines[name]))

    def _route_info(self, route: RouteSettings) -> ModelInfo:
        return model_info(route.name, self._created, Capabilities())

    def _model(self, name: str) -> dict[str, Any]:
        routes = self._pipeline.routes
        engine, settings = routes.engines[name], self._settings.get(routes.base(name) or name)
        can = _known(engine)
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "interlace",
            "state": engine.health().state,
            "kind": _kind(can),
            "context_length": can.context_length or None,
            "dimensions": can.dimensions or None,
            "precision": can.precision or None,
            "engine": None if settings is None else settings.engine,
            "checkpoint": None if settings is None else settings.checkpoint or None,
        }


def _style(scope: Scope) -> Style:
    exchange: Exchange = scope["interlace.exchange"]
    return exchange.style


def _known(engine: Engine) -> Capabilities:
    """What an engine can do, as far as that is known."""
    try:
        return engine.capabilities()
    except EngineUnavailable:
        return Capabilities()


def _kind(can: Capabilities) -> str | None:
    if can.embed:
        return "embeddings"
    if can.labels:
        return "rerank" if len(can.labels) == 1 else "classify"
    if can.generate:
        return "chat" if can.chat else "completions"
    return None
