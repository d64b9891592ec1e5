"""`/v1/files`: upload, list, show, read and delete what a project keeps here, as OpenAI's API has it."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Annotated, BinaryIO, Literal
from urllib.parse import quote

import msgspec
from msgspec import Meta
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from interlace.config import LimitSettings
from interlace.deposits import Deposits, File, NewFile, too_much
from interlace.errors import InvalidRequest, LedgerUnavailable
from interlace.gateway.http import (
    JSON,
    Exchange,
    ReaderStuck,
    credential_of,
    query_of,
    send_whole,
    start_response,
)
from interlace.gateway.multipart import Form, read_form
from interlace.gateway.wire import Body, convert, encode
from interlace.ledger import Caller, Ledger

PIECE = 256 << 10  # bytes of a file read at once


class FileQuery(Body, frozen=True, kw_only=True):
    """What a list of files may be asked for."""

    after: Annotated[str, Meta(pattern="^file-[0-9a-f]{24}$")] | None = None
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 10_000
    order: Literal["asc", "desc"] = "desc"
    purpose: Annotated[str, Meta(pattern="^[a-z_-]{1,24}$")] | None = None


class FileList(msgspec.Struct, frozen=True, kw_only=True):
    """Files in the order of time."""

    data: list[File]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class FileDeleted(msgspec.Struct, frozen=True, kw_only=True):
    """A file is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


def file_routes(ledger: Ledger, deposits: Deposits, limits: LimitSettings) -> list[Route]:
    """The paths of files."""
    pages = FilePages(ledger, deposits, limits)
    return [
        Route("/v1/files", pages.all, methods=["GET", "POST"]),
        Route("/v1/files/{id}", pages.one, methods=["GET", "DELETE"]),
        Route("/v1/files/{id}/content", pages.content, methods=["GET"]),
    ]


async def caller_of(ledger: Ledger, scope: Scope, endpoint: str) -> Caller:
    """Who asks, counted among the requests per minute of its plan before anything is looked up; raises
    `Unauthenticated`, `Forbidden` and `RateLimited`."""
    exchange: Exchange = scope["interlace.exchange"]
    exchange.endpoint = endpoint
    caller = ledger.authenticate(credential_of(scope))
    try:
        await ledger.visit(caller)
    finally:
        exchange.tell_limits(ledger.left(caller))
    return caller


def limit_of(query: dict[str, str]) -> dict[str, object]:
    """The parameters of a query, `limit` as the number it must be."""
    limit = query.get("limit")
    return {**query, "limit": int(limit)} if limit is not None and limit.isascii() and limit.isdigit() else {**query}


class FilePages:
    """The ASGI applications. What waits for the disk runs beside the event loop."""

    def __init__(self, ledger: Ledger, deposits: Deposits, limits: LimitSettings) -> None:
        self._files = deposits.files
        self._ledger = ledger
        self._limits = limits
        self._arriving: Counter[str] = Counter()  # bytes of uploads under way, by project
        self.all = Methods(ledger, "files", GET=self._list, POST=self._create)
        self.one = Methods(ledger, "files", GET=self._show, DELETE=self._delete)
        self.content = Methods(ledger, "files", GET=self._content)

    async def _create(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        project, most, began = caller.project.id, self._limits.project_file_bytes, self._ledger.registry.clock.now()
        stored, mine = await asyncio.to_thread(self._files.used, project), 0

        def arrived(count: int) -> None:
            """Uploads at the same time, too, have only so much room on disk."""
            nonlocal mine
            mine += count
            self._arriving[project] += count
            if stored + self._arriving[project] > most:
                raise too_much(most)

        try:
            with await asyncio.to_thread(self._files.begin) as partial:
                try:
                    form = Form(partial.write, arrived, self._limits.file_bytes)
                    await read_form(scope, receive, form, self._limits.body_seconds)
                    new = _described(form)
                    file = await asyncio.to_thread(self._files.add, project, new, partial, most, began)
                finally:
                    self._arriving[project] -= mine
                    if not self._arriving[project]:
                        del self._arriving[project]
        except OSError as error:
            raise _no_room(error) from error
        await send_whole(send, 200, JSON, encode(file))

    async def _list(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        query = convert(limit_of(query_of(scope)), FileQuery)
        found, more = await asyncio.to_thread(
            self._files.list,
            caller.project.id,
            after=query.after,
            limit=query.limit,
            newest_first=query.order == "desc",
            purpose=query.purpose,
        )
        data = list(found)
        ends = (data[0].id, data[-1].id) if data else (None, None)
        await send_whole(send, 200, JSON, encode(FileList(data=data, first_id=ends[0], last_id=ends[1], has_more=more)))

    async def _show(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        file = await asyncio.to_thread(self._files.get, caller.project.id, scope["path_params"]["id"])
        await send_whole(send, 200, JSON, encode(file))

    async def _delete(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        id = scope["path_params"]["id"]
        await asyncio.to_thread(self._files.delete, caller.project.id, id)
        await send_whole(send, 200, JSON, encode(FileDeleted(id=id)))

    async def _content(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        file, content = await asyncio.to_thread(self._files.open, caller.project.id, scope["path_params"]["id"])
        try:
            name = f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}".encode()
            headers = (b"content-disposition", name), (b"x-content-type-options", b"nosniff")
            await start_response(send, 200, b"application/octet-stream", *headers, length=file.bytes)
            if scope["method"] == "HEAD":
                await send({"type": "http.response.body"})
            else:
                await self._send_content(scope, send, content)
        finally:
            await asyncio.to_thread(content.close)

    async def _send_content(self, scope: Scope, send: Send, content: BinaryIO) -> None:
        more = True
        while more:
            piece = await asyncio.to_thread(content.read, PIECE)
            more = bool(piece)
            try:
                async with asyncio.timeout(self._limits.reader_seconds):
                    await send({"type": "http.response.body", "body": piece, "more_body": more})
            except TimeoutError:
                scope["interlace.abort"]()
                raise ReaderStuck from None


class Methods:
    """One path: what it does by method, for callers that are known."""

    def __init__(self, ledger: Ledger, endpoint: str, **methods: object) -> None:
        self._ledger = ledger
        self._endpoint = endpoint
        self._methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        caller = await caller_of(self._ledger, scope, self._endpoint)
        answer = self._methods["GET" if scope["method"] == "HEAD" else scope["method"]]
        await answer(caller, scope, receive, send)  # type: ignore[operator]


def _described(form: Form) -> NewFile:
    """What the fields of a form say of its file; raises `InvalidRequest`."""
    fields = dict(form.fields)
    purpose = fields.pop("purpose", None)
    anchor, seconds = (fields.pop(f"expires_after[{name}]", None) for name in ("anchor", "seconds"))
    if fields:
        name = next(iter(fields))[:50]
        raise InvalidRequest(f"Unrecognized request argument supplied: {name}", param=name, code="unknown_parameter")
    for name, value in (("file", form.filename), ("purpose", purpose)):
        if value is None:
            raise InvalidRequest(
                f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
            )
    assert form.filename is not None
    assert purpose is not None
    if (anchor is None) is not (seconds is None) or anchor not in (None, "created_at"):
        raise InvalidRequest("'expires_after' needs the anchor 'created_at' and seconds.", param="expires_after")
    if seconds is not None and not (seconds.isascii() and seconds.isdigit() and len(seconds) < 10):
        raise InvalidRequest("'expires_after.seconds' must be a whole number.", param="expires_after.seconds")
    name = form.filename.replace("\\", "/").rpartition("/")[2]  # only ever shown; it names nothing on disk
    return NewFile(name, purpose, None if seconds is None else int(seconds))


def _no_room(error: OSError) -> LedgerUnavailable:
    return LedgerUnavailable(f"The file cannot be kept now: {error.strerror}. Try again soon.", retry_after_seconds=5)
