"""`python -m benchmarks.peers.http_client PORT KEY MODEL`: streamed chats, read as cheaply as Python can.

Raw asyncio protocols over connections that stay open. It looks for the first text in the bytes and reads no JSON; the
token counts come from the usage event at the end of each stream. Its own CPU time is part of the measurement.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import Any

import uvloop

from benchmarks.peers.lines import Run, answer_jobs, chat_text

_DONE = b"data: [DONE]"
_TEXT = re.compile(rb'"content":"[^"]')  # the first event has the role and no text
_USAGE = re.compile(rb'"completion_tokens":(\d+)')
_KEPT = 512  # bytes from the end: where usage and the end mark stand


class Stream(asyncio.Protocol):
    """One connection: one request at a time, its tokens counted when it ends."""

    def __init__(self) -> None:
        self.transport: Any = None  # uvloop's own kind
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.first_at: float | None = None
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to write to."""
        self.transport = transport

    def send(self, request: bytes) -> None:
        """Start the next request."""
        self.done = asyncio.get_running_loop().create_future()
        self.first_at, self._tail = None, b""
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Note the first text; look for the end of the stream in the last bytes only."""
        if self.first_at is None and _TEXT.search(data):
            self.first_at = time.perf_counter()
        self._tail = (self._tail + data)[-_KEPT:]
        if self._tail.endswith(b"0\r\n\r\n") and _DONE in self._tail:
            usage = _USAGE.search(self._tail)
            self.done.set_result(int(usage[1]) if usage else 0)

    def connection_lost(self, exc: Exception | None) -> None:
        """A stream cut before its end fails the job."""
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError(f"the stream was cut after: {self._tail.decode()!r}"))


class Client:
    """Connections to one server, as many as the widest job needed."""

    def __init__(self, port: int, key: str, model: str) -> None:
        self._port, self._key, self._model = port, key, model
        self._streams: list[Stream] = []

    async def run(self, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        """All prompts at once, one connection each. Times run from the first byte sent to the last one received."""
        loop = asyncio.get_running_loop()
        while len(self._streams) < len(prompts):
            _, stream = await loop.create_connection(Stream, "127.0.0.1", self._port)
            self._streams.append(stream)
        used = self._streams[: len(prompts)]
        requests = [self._request(prompt, new_tokens) for prompt in prompts]
        cpu, began = time.process_time(), time.perf_counter()
        for stream, request in zip(used, requests, strict=True):
            stream.send(request)
        counts = await asyncio.wait_for(asyncio.gather(*(stream.done for stream in used)), 300)
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        assert set(counts) == {new_tokens}, f"every stream gets every token, not {counts}"
        firsts = [stream.first_at - began for stream in used if stream.first_at is not None]
        return {
            "whole": sum(counts) / wall,
            "first_token_seconds": sum(firsts) / len(firsts),
            "cpu_seconds": cpu,
            "wall_seconds": wall,
        }

    def _request(self, prompt: list[int], new_tokens: int) -> bytes:
        body = json.dumps({
            "model": self._model, "messages": [{"role": "user", "content": chat_text(prompt)}],
            "max_tokens": new_tokens, "temperature": 0, "top_p": 1, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True},
        }).encode()  # fmt: skip
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
            f"Authorization: Bearer {self._key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def load(port: int, key: str, model: str) -> tuple[Run, dict[str, Any]]:
    """A client with an event loop of its own."""
    loop = uvloop.new_event_loop()
    client = Client(port, key, model)

    def run(prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        return loop.run_until_complete(client.run(prompts, new_tokens))

    return run, {}


if __name__ == "__main__":
    answer_jobs(lambda: load(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
