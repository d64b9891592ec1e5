"""Which engine answers for which public model name, and whether it can do what is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from interlace.config import RouteSettings
from interlace.engines.types import Capabilities, EmbedRequest, Engine, GenerateRequest
from interlace.errors import EngineUnavailable, Forbidden, InvalidRequest, NotFound
from interlace.gateway.adapters import Adapted, passes
from interlace.gateway.routing import AnyMemory, Live
from interlace.ledger import Caller

PRIVATE = "private"  # what models that have an owner are called together, where anybody may look


@dataclass(frozen=True, slots=True)
class Routes:
    """The served models by name, adapters among them, and the routes to them. What stands behind a wall of `walls` is
    to other organisations, in every way, a name that means nothing."""

    engines: Mapping[str, Engine]
    kinds: Mapping[str, str] = field(default_factory=dict)  # model → what runs it, as the settings call it
    routes: Mapping[str, RouteSettings] = field(default_factory=dict)
    live: Mapping[str, Live] = field(default_factory=dict)  # model → what is known of it from what it was asked
    memories: Mapping[str, AnyMemory] = field(default_factory=dict)  # route → its answers, where it remembers them
    walls: Mapping[str, frozenset[str]] = field(default_factory=dict)  # name → whose it is, if not all's

    def kind(self, model: str) -> str:
        """What runs a served model: "local", ..."""
        return self.kinds.get(model, "local")

    def base(self, model: str) -> str:
        """The base of an adapter; "" of any other name."""
        engine = self.engines.get(model)
        return engine.base if isinstance(engine, Adapted) else ""

    def counted_as(self, name: str) -> str:
        """What a model, adapter or route is called where anybody may look: adapters as their bases, and models that
        have an owner all alike."""
        base = self.base(name) or name
        return PRIVATE if base in self.walls and base in self.engines else base

    def label(self, name: str, status: int) -> str | None:
        """What is counted where a request named that and got that status; None where there is none such, or the caller
        was perhaps told so."""
        if (name not in self.engines and name not in self.routes) or (400 <= status < 500 and name in self.walls):
            return None
        return self.counted_as(name)

    @property
    def watched(self) -> dict[str, Live]:
        """What is known of the models that anybody may see, without adapters."""
        return {name: self.live[name] for name in self.bases if name not in self.walls}

    @property
    def bases(self) -> dict[str, Engine]:
        """The served models without their adapters."""
        return {name: engine for name, engine in self.engines.items() if not isinstance(engine, Adapted)}

    def shown(self, name: str, caller: Caller) -> bool:
        """Whether the caller may know that there is a model or route of that name, and may use it."""
        return caller.may_use(name) and passes(self.walls.get(name, ()), caller)

    def route(self, name: str, caller: Caller) -> RouteSettings | None:
        """The route of that name, None where there is none; raises `Forbidden` where key or plan do not allow it. What
        is behind it needs no allowance of its own, but a wall before it is the route's, too."""
        route = self.routes.get(name)
        if route is None or not passes(self.walls.get(name, ()), caller):
            return None
        _check_allowed(name, caller)
        return route

    def find(self, model: str, caller: Caller) -> Engine:
        """The engine behind a model's own name; raises `NotFound`, or `Forbidden` where key or plan do not allow it."""
        engine = self.engines.get(model)
        if engine is None or not passes(self.walls.get(model, ()), caller):
            raise NotFound(
                f"The model `{model[:200]}` does not exist or you do not have access to it.",
                param="model",
                code="model_not_found",
            )
        _check_allowed(model, caller)
        return engine


def _check_allowed(name: str, caller: Caller) -> None:
    if not caller.may_use(name):
        raise Forbidden(
            f"This API key does not have access to model `{name}`. GET /v1/models lists what it may use.",
            param="model",
            code="model_not_found",
        )


def ready_capabilities(engine: Engine) -> Capabilities:
    """What the engine can do; raises `EngineUnavailable`, saying when to come back, while it is not ready."""
    health = engine.health()
    if health.state != "ready":
        if health.state == "failed":  # the reason, with its paths, is for the operator: it is in the log and /readyz
            raise EngineUnavailable("The model could not be loaded. Whoever runs this server can see why in /readyz.")
        raise EngineUnavailable(
            f"The model is {health.state}. Try again soon; /readyz says when.", retry_after_seconds=2
        )
    return engine.capabilities()


def check_fits(work: GenerateRequest | EmbedRequest, can: Capabilities, dimensions: int | None = None) -> None:
    """Raise `InvalidRequest` when the engine cannot do this work at all."""
    if isinstance(work, EmbedRequest):
        if work.purpose == "score":
            _check_scores(work, can)
        elif not can.embed:
            raise InvalidRequest("This model makes no embeddings.", param="model", code="model_not_supported")
        if dimensions is not None and dimensions != can.dimensions:
            have = f"have {can.dimensions} dimensions and" if can.dimensions else "are as its provider makes them, and"
            raise InvalidRequest(f"This model's embeddings {have} cannot be shortened.", param="dimensions")
        _check_ids((token for row in work.ids for token in row), can, "input")
        return
    if not can.generate:
        only = "only scores texts: use /v1/rerank or /v1/classify" if can.labels else "only makes embeddings"
        raise InvalidRequest(f"This model {only}.", param="model", code="model_not_supported")
    if work.messages is not None and not can.chat:
        raise InvalidRequest(
            "This model has no chat template. Use /v1/completions with a prompt.",
            param="model",
            code="model_not_supported",
        )
    if work.tools and work.tool_choice != "none" and not can.chat:
        raise InvalidRequest("This model cannot call tools.", param="tools", code="model_not_supported")
    if work.prompt_ids:
        _check_ids(work.prompt_ids, can, "prompt")
    if work.sampling.logit_bias:
        _check_ids(work.sampling.logit_bias, can, "logit_bias")


def _check_scores(work: EmbedRequest, can: Capabilities) -> None:
    if not can.labels:
        raise InvalidRequest("This model scores no texts.", param="model", code="model_not_supported")
    if work.query is not None and len(can.labels) != 1:
        raise InvalidRequest(
            f"This model gives a text {len(can.labels)} scores, so it orders nothing: use /v1/classify.",
            param="model",
            code="model_not_supported",
        )


def _check_ids(ids: Iterable[int], can: Capabilities, param: str) -> None:
    largest = max(ids, default=0)
    if largest >= can.vocabulary > 0:
        raise InvalidRequest(
            f"Token id {largest} is beyond this model's vocabulary of {can.vocabulary} tokens.", param=param
        )
