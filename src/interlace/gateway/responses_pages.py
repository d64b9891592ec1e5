"""Stored responses: retrieve, list what one was given, delete, cancel. Only for its project a response is there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl

import msgspec
from msgspec import Meta
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from interlace.config import LimitSettings
from interlace.deposits import Deposits, Turn
from interlace.errors import InvalidRequest, NotFound
from interlace.gateway.file_pages import caller_of
from interlace.gateway.http import EVENT_STREAM, JSON, credential_of, send_whole
from interlace.gateway.pipeline import Pipeline
from interlace.gateway.responses_answer import DeletedResponse, ItemList
from interlace.gateway.responses_body import Include
from interlace.gateway.responses_endpoint import ResponsesEndpoint
from interlace.gateway.responses_ids import is_response_id
from interlace.gateway.responses_rendering import SEALS, replayed, shown
from interlace.gateway.responses_running import Background, Running
from interlace.gateway.wire import convert, encode

_LISTS = ("include",)
_json = msgspec.json.Decoder()


class Retrieval(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a response is to be told. `stream`: as its events again; `starting_after`: those after that number."""

    include: list[Include] = []
    include_obfuscation: bool = False
    starting_after: Annotated[int, Meta(ge=0, le=1 << 53)] | None = None
    stream: bool = False


class Listing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which page of the items, and in what order."""

    after: str | None = None
    include: list[Include] = []
    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"


def response_routes(pipeline: Pipeline, deposits: Deposits, limits: LimitSettings, running: Running) -> list[Route]:
    """The pages, and the endpoint that makes responses."""
    endpoint = ResponsesEndpoint(pipeline, deposits.responses, limits, running)
    pages = ResponsePages(endpoint)
    return [
        Route("/v1/responses", endpoint, methods=["POST"]),
        Route("/v1/responses/{id}", Page(pages, "retrieve"), methods=["GET"]),
        Route("/v1/responses/{id}", Page(pages, "delete"), methods=["DELETE"]),
        Route("/v1/responses/{id}/cancel", Page(pages, "cancel"), methods=["POST"]),
        Route("/v1/responses/{id}/input_items", Page(pages, "input_items"), methods=["GET"]),
    ]


@dataclass(frozen=True)
class Page:
    """One of them as an application."""

    pages: ResponsePages
    name: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or have it answered where the response runs."""
        if not await self.pages.passed_on(scope, receive, send):
            await getattr(self.pages, self.name)(scope, receive, send)


@dataclass(frozen=True)
class ResponsePages:
    """What one may do with a response that is there."""

    endpoint: ResponsesEndpoint

    async def passed_on(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Whether another process, which runs the response, has answered the request."""
        running, id = self.endpoint.running, scope["path_params"]["id"]
        if running.pass_on is None or not is_response_id(id):
            return False
        caller = self.endpoint.pipeline.ledger.authenticate(credential_of(scope))
        runner = await asyncio.to_thread(self.endpoint.responses.runner_of, caller.project.id, id)
        return runner is not None and await running.pass_on(runner, scope, receive, send)

    async def retrieve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As it stands, or as the stream of its events."""
        project, id = await self._who(scope)
        wanted = convert(_query(scope), Retrieval, strict=False)
        if wanted.starting_after is not None and not wanted.stream:
            raise InvalidRequest("'starting_after' needs 'stream' to be true.", param="starting_after")
        running = await self._running(project, id)
        seals = SEALS in wanted.include
        if running is not None:
            if not wanted.stream:
                await send_whole(send, 200, JSON, shown(running.rendering.kept(), seals=seals))
                return
            if not running.rendering.stream:
                raise InvalidRequest(
                    "This response was not begun as a stream, so it cannot be followed. Ask again until it ends.",
                    param="stream",
                )
            after = -1 if wanted.starting_after is None else wanted.starting_after
            await self.endpoint.send_followed(scope, receive, send, running, after=after)
            return
        turn = await self._find(project, id)
        if wanted.stream:
            events = replayed(turn.body, seals=seals, after=wanted.starting_after)
            await send_whole(send, 200, EVENT_STREAM, b"".join(events), (b"cache-control", b"no-cache"))
            return
        await send_whole(send, 200, JSON, shown(turn.body, seals=seals))

    async def input_items(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """A page of the items that it was given itself; those of the responses before it are theirs."""
        project, id = await self._who(scope)
        wanted = convert(_query(scope), Listing, strict=False)
        running = await self._running(project, id)
        given = encode(running.rendering.input) if running is not None else (await self._find(project, id)).input
        await send_whole(send, 200, JSON, encode(_page(_json.decode(given), wanted)))

    async def delete(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Forget it; one that runs is stopped first."""
        project, id = await self._who(scope)
        running = await self._running(project, id)
        if running is not None:
            await running.cancel()
        if not await asyncio.to_thread(self.endpoint.responses.delete, project, id):
            raise _not_found(id)
        await send_whole(send, 200, JSON, encode(DeletedResponse(id)))

    async def cancel(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Stop one that runs in the background; a second time changes nothing."""
        project, id = await self._who(scope)
        running = await self._running(project, id)
        if running is not None:
            await running.cancel()
            await send_whole(send, 200, JSON, shown(running.rendering.kept(), seals=running.rendering.seals))
            return
        turn = await self._find(project, id)
        if not _json.decode(turn.body)["background"]:
            raise InvalidRequest("Cannot cancel a synchronous response: close its connection instead.", param="id")
        if turn.status != "cancelled":
            raise InvalidRequest(f"Cannot cancel a response that is {turn.status}.", param="id")
        await send_whole(send, 200, JSON, shown(turn.body, seals=False))

    async def _who(self, scope: Scope) -> tuple[str, str]:
        """The caller's project, and the response in the path."""
        caller = await caller_of(self.endpoint.pipeline.ledger, scope, "responses")
        return caller.project.id, scope["path_params"]["id"]

    async def _running(self, project: str, id: str) -> Background | None:
        """The response, while it runs. One that has ended is told once that is durable, as it is stored."""
        running = self.endpoint.running.find(project, id)
        if running is None or not running.rendering.ended:
            return running
        await running.wait()
        return None

    async def _find(self, project: str, id: str) -> Turn:
        turn = await asyncio.to_thread(self.endpoint.responses.find, project, id) if is_response_id(id) else None
        if turn is None:
            raise _not_found(id)
        return turn


def _page(items: list[dict[str, Any]], wanted: Listing) -> ItemList:
    ordered = items if wanted.order == "asc" else list(reversed(items))
    if wanted.after is not None:
        places = [number for number, item in enumerate(ordered) if item["id"] == wanted.after]
        if not places:
            raise InvalidRequest(f"There is no item '{wanted.after[:200]}' in this list.", param="after")
        ordered = ordered[places[0] + 1 :]
    page = ordered[: wanted.limit]
    if SEALS not in wanted.include:
        page = [{name: value for name, value in item.items() if name != "encrypted_content"} for item in page]
    first, last = (page[0]["id"], page[-1]["id"]) if page else ("", "")
    return ItemList(page, first, last, len(ordered) > len(page))


def _query(scope: Scope) -> dict[str, Any]:
    """The parameters of the query; those that are lists may be given several times, as `include` or `include[]`."""
    try:
        pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=100)
    except ValueError:
        raise InvalidRequest("The query has more parameters than anything here takes.") from None
    found: dict[str, Any] = {}
    for name, value in pairs:
        plain = name.removesuffix("[]")
        if plain in _LISTS:
            found.setdefault(plain, []).append(value)
        elif name in found:
            raise InvalidRequest("A parameter of the query is given twice. Give it once.", param=name)
        else:
            found[name] = value
    return found


def _not_found(id: str) -> NotFound:
    return NotFound(f"Response with id '{id[:200]}' not found.", param="response_id", code="response_not_found")
