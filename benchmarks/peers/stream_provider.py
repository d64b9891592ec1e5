"""`python -m benchmarks.peers.stream_provider PORT`: a provider that streams chats at the pace it is asked for.

`max_tokens` of a request is how many chunks it gets, `seed` the milliseconds between them. Each chunk has the moment
at which it was written in its text. Raw asyncio protocols: the provider must not be what is measured.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import uvloop

from benchmarks.peers.stamps import stamp

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_START = (
    '{"id":"chatcmpl-BfKpXm3e8n4wP1QzLr7sT2uVyA9","object":"chat.completion.chunk","created":1780000000,'
    '"model":"upstream-2026-01-01","service_tier":"default","system_fingerprint":"fp_1234567890",'
)


def _chunk(text: str) -> bytes:
    data = f"data: {text}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


def _said(delta: str, finish: str = "null") -> bytes:
    rest = f'"choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish}}}],"usage":null}}'
    return _chunk(_START + rest)


class Connection(asyncio.Protocol):
    """One connection, a request after another."""

    def __init__(self) -> None:
        self.transport: Any = None
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._left = self._asked = 0
        self._pace = self._next = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to write to."""
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Stop streaming."""
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Begin to answer once the body is there."""
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        if head.startswith(b"GET "):
            self._buffer = b""
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            return
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            if not body.endswith(b"0\r\n\r\n"):
                return
            body = body[body.index(b"{") : body.rindex(b"}") + 1]  # chats come in one piece
        elif len(body) < int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0]):
            return
        self._buffer = b""
        asked = json.loads(body)
        self._asked = self._left = asked.get("max_tokens") or asked["max_completion_tokens"]
        self._pace = asked.get("seed", 0) / 1000
        self._next = self._loop.time()
        self.transport.write(_HEAD + _said('{"role":"assistant","content":"","refusal":null}'))
        self._tick()

    def _tick(self) -> None:
        """One chunk, at its time; those that are late keep their own pace."""
        self.transport.write(_said(f'{{"content":"{stamp()} "}}'))
        self._left -= 1
        if self._left:
            self._next += self._pace
            self._timer = self._loop.call_at(self._next, self._tick)
            return
        self._timer = None
        usage = f'{{"prompt_tokens":46,"completion_tokens":{self._asked},"total_tokens":{46 + self._asked}}}'
        told = _chunk(_START + f'"choices":[],"usage":{usage}}}')
        self.transport.write(_said("{}", '"stop"') + told + _chunk("[DONE]") + b"0\r\n\r\n")


async def main(port: int) -> None:
    """Until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port, backlog=2048)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1])))
