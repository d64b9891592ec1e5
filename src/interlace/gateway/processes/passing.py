"""Requests for what only another worker has, such as a response that runs in the background there: passed on to it over
a Unix socket in the run folder, and its answer passed back as it comes.

    to it      one frame: [method, path, query string, headers]
    from it    frames: [1, status, headers], then [2, body, more] … until `more` is false

It answers as if it had been asked itself, key and all: passing on gives nobody more than they have. Frames are four
bytes of length, little-endian, and msgpack. Either side closes the connection when its own caller, or itself, is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from interlace.gateway.processes.places import RunFolder
from interlace.ledger.escrow import Worker

log = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]
LONGEST_FRAME = 1 << 30  # of our own making: a length beyond it is not one
OURS = b"x-request-id"  # each side gives its own

_request = msgspec.msgpack.Decoder(tuple[str, str, bytes, Headers])


def runner_of(worker: Worker) -> str:
    """How the ledger names the process that runs something."""
    return f"{worker.id}/{worker.epoch}"


@dataclass(frozen=True, slots=True)
class Passing:
    """Of one worker."""

    run: RunFolder
    me: Worker
    app: ASGIApp

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[None]:
        """Others may ask while inside."""
        name = _socket_of(self.me.id)
        self.run.remove_socket(name)
        with self.run.socket(name) as path:
            server = await asyncio.start_unix_server(self._answer, path)
        try:
            yield
        finally:
            server.close()

    async def pass_on(self, runner: str, scope: Scope, receive: Receive, send: Send) -> bool:
        """Have the process of that name answer; whether it could be reached. It can not where it is this one, or of
        another machine, or dead."""
        place, _, _ = runner.rpartition("/")
        if runner == runner_of(self.me) or place.rpartition("-")[0] != self.me.id.rpartition("-")[0]:
            return False
        try:
            with self.run.socket(_socket_of(place)) as path:
                reader, writer = await asyncio.open_unix_connection(path)
        except OSError:
            return False
        begun = False

        async def send_on(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        asked = asyncio.create_task(_pass_back(reader, send_on))
        gone = asyncio.create_task(_gone(receive))
        try:
            writer.write(_frame((scope["method"], scope["path"], scope["query_string"], list(scope["headers"]))))
            await asyncio.wait([asked, gone], return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                await asked
        except (OSError, asyncio.IncompleteReadError):  # it has died
            if not begun:
                return False
            scope["interlace.abort"]()  # its caller must not take what came for the whole
        finally:
            for task in (asked, gone):
                task.cancel()
            writer.close()
            await asyncio.gather(asked, gone, return_exceptions=True)
        return True

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request of another worker."""

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(name, value) for name, value in message["headers"] if name != OURS]
                writer.write(_frame((1, message["status"], headers)))
            else:
                writer.write(_frame((2, message.get("body", b""), message.get("more_body", False))))
            await writer.drain()

        begun = False

        async def receive() -> Message:
            nonlocal begun
            if not begun:
                begun = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await reader.read()
            return {"type": "http.disconnect"}

        try:
            method, path, query, headers = _request.decode(await _read(reader))
            scope: dict[str, Any] = {
                "type": "http", "http_version": "1.1", "method": method, "scheme": "http", "path": path,
                "raw_path": path.encode(), "query_string": query, "root_path": "", "headers": headers,
                "client": None, "server": None, "interlace.abort": writer.close,
            }  # fmt: skip
            await self.app(scope, receive, send)
        except (OSError, asyncio.IncompleteReadError):
            pass  # whoever asked is gone
        except Exception:
            log.exception("a request that was passed on met a bug of ours")
        finally:
            writer.close()


async def _pass_back(reader: asyncio.StreamReader, send: Send) -> None:
    """The answer, as it comes. One that breaks off in the middle breaks off here, too."""
    more = True
    while more:
        kind, first, second = msgspec.msgpack.decode(await _read(reader))
        if kind == 1:
            headers = [tuple(pair) for pair in second]
            await send({"type": "http.response.start", "status": first, "headers": headers})
        else:
            more = second
            await send({"type": "http.response.body", "body": first, "more_body": more})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read(reader: asyncio.StreamReader) -> bytes:
    length = int.from_bytes(await reader.readexactly(4), "little")
    if length > LONGEST_FRAME:
        raise OSError("not a frame")
    return await reader.readexactly(length)


def _frame(value: Any) -> bytes:
    body = msgspec.msgpack.encode(value)
    return len(body).to_bytes(4, "little") + body


def _socket_of(place: str) -> str:
    """The name of a worker's socket in the run folder."""
    return f"{place.rpartition('-')[2]}-http"
