"""The HTTP application: every page there is, and the handlers around them, in one visible expression each."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from interlace.config import Settings
from interlace.errors import InterlaceError, NotFound
from interlace.gateway.adapter_operations import adapter_operations
from interlace.gateway.admin import admin_routes
from interlace.gateway.anthropic_count import CountEndpoint
from interlace.gateway.batch_pages import batch_routes
from interlace.gateway.batch_runner import BatchRunner, Fixed
from interlace.gateway.cors import Cors
from interlace.gateway.dialects import PARSED, style_of
from interlace.gateway.endpoint import Endpoint
from interlace.gateway.file_pages import file_routes
from interlace.gateway.http import ClientGone, Exchange, header, send_error
from interlace.gateway.logs import ACCESS, say_request
from interlace.gateway.metrics import NO_MODEL
from interlace.gateway.model_operations import model_operations
from interlace.gateway.pages import MetricsPage, ModelPages, health_page, hello_page, openapi_page, ready_page
from interlace.gateway.pipeline import Pipeline
from interlace.gateway.reload_page import Reload, ReloadPage, cannot_reload
from interlace.gateway.responses_pages import response_routes
from interlace.gateway.responses_running import Running
from interlace.gateway.route_operations import route_operations
from interlace.gateway.usage_pages import OwnUsagePage, SpentPage
from interlace.gateway.wire import ADMIN, MethodNotAllowed

_log = logging.getLogger(__name__)
_access = logging.getLogger(ACCESS)


@dataclass
class State:
    """What changes while the gateway runs: draining, once it was asked to stop. `reload` reads the configuration."""

    started: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False
    reload: Reload = cannot_reload
    batches: BatchRunner | None = None
    metrics: Callable[[], Awaitable[bytes]] | None = None  # of all processes, where there are several
    running: Running = field(default_factory=Running)


def make_app(settings: Settings, pipeline: Pipeline, state: State) -> ASGIApp:
    """The application. `Gateway` is around all pages."""
    limits = settings.limits
    models = ModelPages(pipeline, state.started, settings.models)
    adapters = adapter_operations(pipeline, settings, lambda: state.reload)
    served = model_operations(pipeline, settings, lambda: state.reload)
    if state.batches is None:  # one for the process, whatever is loaded: `serve` tells it what is current
        state.batches = BatchRunner(pipeline.deposits, Fixed(settings, pipeline).held)
    deposits = state.batches.deposits
    pages = Router(
        [
            *(
                Route(path, Endpoint(spoken.name, parse, pipeline, limits, spoken.heed), methods=["POST"])
                for path, (spoken, parse) in PARSED.items()
            ),
            Route("/v1/messages/count_tokens", CountEndpoint("count_tokens", pipeline, limits), methods=["POST"]),
            *response_routes(pipeline, deposits, limits, state.running),
            Route("/v1/models", models.all, methods=["GET"]),
            Route("/v1/models/{model:path}", models.one, methods=["GET"]),
            Route("/v1/usage", OwnUsagePage(pipeline.ledger), methods=["GET"]),
            Route("/v1/usage/{id}", SpentPage(pipeline.ledger), methods=["GET"]),
            Route(f"{ADMIN}/reload", ReloadPage(pipeline.ledger, limits, lambda: state.reload), methods=["POST"]),
            *file_routes(pipeline.ledger, deposits, limits),
            *batch_routes(pipeline.ledger, deposits, limits, state.batches.changed),
            *admin_routes(pipeline.ledger, limits, (*route_operations(pipeline), *adapters, *served)),
            Route("/healthz", health_page(), methods=["GET"]),
            Route("/readyz", ready_page(pipeline.routes, lambda: state.draining), methods=["GET"]),
            Route("/metrics", MetricsPage(pipeline.metrics, lambda: state.metrics), methods=["GET"]),
            Route("/openapi.json", openapi_page(), methods=["GET"]),
            Route("/", hello_page(), methods=["GET"]),
        ],
        redirect_slashes=False,
    )
    posts = {route.path: route.endpoint for route in pages.routes if isinstance(route, Route) and route.path in PARSED}
    app = Gateway(pages, posts, pipeline, Cors.of(settings.cors.origins))
    trusted = list(settings.proxy.trusted)
    return ProxyHeadersMiddleware(app, trusted) if trusted else app  # type: ignore[arg-type, return-value] # ASGI, twice


@dataclass(frozen=True)
class Gateway:
    """Around every page: gives each request its `Exchange` and each answer its `x-request-id`, tells errors in the
    shape of the endpoint's dialect, writes one line and counts once when the request is over.

    `posts` are the pages that answer, which most requests ask for, by path; they are among `pages`, too.
    """

    pages: ASGIApp
    posts: Mapping[str, ASGIApp]
    pipeline: Pipeline
    cors: Cors | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Anything but HTTP is not served here. Errors arrive here only before the answer began; later ones are told
        inside the stream. What nobody foresaw becomes a 500 that is logged."""
        if scope["type"] != "http":
            return None
        style = style_of(scope["path"], anthropic_version=header(scope, b"anthropic-version") is not None)
        exchange = scope["interlace.exchange"] = Exchange.of(scope, style)
        scope["app"] = self  # makes the router raise its 404 and 405 instead of answering in plain text

        async def send_identified(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message["headers"], *exchange.headers, (b"x-request-id", exchange.label)]
            await send(message)

        preflight = False
        if self.cors is not None and not (preflight := self.cors.is_preflight(scope)):
            exchange.marks = self.cors.marks(scope)
        try:
            if self.cors is not None and preflight:
                return await self.cors.answer(scope, send_identified)
            post = self.posts.get(scope["path"]) if scope["method"] == "POST" else None
            await (self.pages if post is None else post)(scope, receive, send_identified)
        except ClientGone:
            exchange.outcome = "client_gone"
        except HTTPException as error:
            headers = [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
            await self._refuse(send_identified, exchange, _of_router(scope, error), *headers)
        except InterlaceError as error:
            await self._refuse(send_identified, exchange, error)
        except Exception:  # noqa: BLE001 - the outermost handler: logged, and told as a 500
            _log.exception("a request met a bug of ours", extra={"fields": {"id": exchange.id}})
            bug = InterlaceError("The server had an error while processing your request.")
            await self._refuse(send_identified, exchange, bug)
        finally:
            self._count(scope, exchange)

    async def _refuse(
        self, send: Send, exchange: Exchange, error: InterlaceError, *headers: tuple[bytes, bytes]
    ) -> None:
        reason = type(error).default_code or ("server_error" if error.status >= 500 else "invalid_request")
        exchange.outcome = reason
        self.pipeline.metrics.refusals.labels(reason).inc()
        if not exchange.status:
            await send_error(send, exchange, error, *headers)

    def _count(self, scope: Scope, exchange: Exchange) -> None:
        metrics, seconds = self.pipeline.metrics, exchange.meter.latency_seconds()
        status = exchange.status or 499  # nothing was answered: the caller had gone
        known = self.pipeline.routes.label(exchange.model, status)
        model = known or NO_MODEL
        metrics.requests.labels(exchange.endpoint, model, str(status)).inc()
        if model != NO_MODEL:
            metrics.duration.labels(exchange.endpoint, model).observe(seconds)
        if exchange.endpoint == "other" and status < 400 and not _access.isEnabledFor(logging.DEBUG):
            return  # probes and scrapes, every few seconds
        usage, guards = exchange.meter.usage(), self.pipeline.guards
        fields = {
            "request_id": exchange.label.decode(),
            "id": exchange.id,
            "method": scope["method"],
            "client": scope["client"][0] if scope.get("client") else None,
            "path": scope["path"][:200] if status < 400 else guards.loggable(scope["path"][:200]),
            "status": status,
            "model": exchange.model if known else guards.loggable(exchange.model[:200]),
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cost_nanos": exchange.meter.cost_nanos,
            "latency_seconds": round(seconds, 4),
            "outcome": exchange.outcome or exchange.meter.outcome or "ok",
        }
        say_request(fields)


def _of_router(scope: Scope, error: HTTPException) -> InterlaceError:
    place = f"{scope['method']} {scope['path'][:200]}"
    if error.status_code == 405:
        return MethodNotAllowed(f"Not allowed to {place}. See the 'Allow' header.")
    return NotFound(f"Invalid URL ({place}). GET / says what is here.", code="unknown_url")
