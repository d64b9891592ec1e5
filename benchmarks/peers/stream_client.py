"""`python -m benchmarks.peers.stream_client`: so many streamed chats at once, and when each of their chunks arrived.

A job: `{"port", "headers", "model", "streams", "chunks", "pace_ms", "ramp_seconds", "most_seconds"}`. Streams begin
evenly over the ramp. The measurement: times to the first chunk, delays of chunks since their provider wrote them, gaps
between them, all as medians and 99th percentiles in milliseconds, and how many chunks arrived in `most_seconds`.
Raw asyncio protocols, and no JSON is read.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

import uvloop

from benchmarks.peers.stamps import LENGTH, stamps

_TAIL = 64


class Stream(asyncio.Protocol):
    """One chat on a connection of its own."""

    def __init__(self, delays: list[int], gaps: list[int]) -> None:
        self._delays, self._gaps = delays, gaps
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.first: int | None = None
        self.chunks = 0
        self.transport: Any = None
        self._began = self._last = 0
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to write to."""
        self.transport = transport

    def send(self, request: bytes) -> None:
        """Ask."""
        self._began = time.monotonic_ns() // 1000
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Note every stamp; the end is the chunked body's."""
        now = time.monotonic_ns() // 1000
        if self.first is None and not self._rest and not data.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(ConnectionError(data[:500].decode(errors="replace")))
            self.transport.abort()
            return
        data = self._rest + data
        for sent in stamps(data):
            self._delays.append(now - sent)
            if self.first is None:
                self.first = now - self._began
            else:
                self._gaps.append(now - self._last)
            self._last = now
            self.chunks += 1
        # A stamp that is cut in two is read with the next piece; one that was read is not kept.
        cut = data.rfind(b"q", -LENGTH + 1) if len(data) >= LENGTH else data.rfind(b"q")
        self._rest = data[cut:] if cut >= 0 and not stamps(data[cut:]) else data[-1:]
        if data.endswith(b"0\r\n\r\n") and not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The end too, where there is no other."""
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the stream was cut"))


async def run(job: dict[str, Any]) -> dict[str, Any]:
    """One job."""
    loop = asyncio.get_running_loop()
    delays: list[int] = []
    gaps: list[int] = []
    request = _request(job)
    streams = []
    for _ in range(job["streams"]):
        _, stream = await loop.create_connection(lambda: Stream(delays, gaps), "127.0.0.1", job["port"])
        streams.append(stream)
    began = loop.time()
    for number, stream in enumerate(streams):
        loop.call_at(began + number * job["ramp_seconds"] / len(streams), stream.send, request)
    _, late = await asyncio.wait([stream.done for stream in streams], timeout=job["most_seconds"])
    seconds = loop.time() - began
    failed = [stream.done.exception() for stream in streams if stream.done.done()]
    for stream in streams:
        stream.transport.abort()
        stream.done.cancel()
    firsts = sorted(stream.first for stream in streams if stream.first is not None)
    delays.sort()
    gaps.sort()
    return {
        "first": _at(firsts, 50), "first99": _at(firsts, 99), "delay": _at(delays, 50), "delay99": _at(delays, 99),
        "gap99": _at(gaps, 99), "longest_gap": _at(gaps, 100), "chunks": len(delays), "late": len(late),
        "seconds": seconds, "failed": [str(error) for error in failed if error is not None][:3],
    }  # fmt: skip


def _at(values: list[int], percentile: int) -> float | None:
    """Milliseconds of sorted microseconds."""
    return values[min(len(values) - 1, len(values) * percentile // 100)] / 1000 if values else None


def _request(job: dict[str, Any]) -> bytes:
    body = json.dumps({
        "model": job["model"], "max_tokens": job["chunks"], "seed": job["pace_ms"], "stream": True,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant of a travel agency."},
            {"role": "user", "content": "Which city is the capital of France, and what should one see there?"},
        ],
    }).encode()  # fmt: skip
    headers = {"Host": f"127.0.0.1:{job['port']}", "Content-Type": "application/json", **job["headers"]}
    headers["Content-Length"] = str(len(body))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST /v1/chat/completions HTTP/1.1\r\n{lines}\r\n".encode() + body


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    answers.write("{}\n")
    answers.flush()
    for line in sys.stdin:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            answers.write(json.dumps(runner.run(run(json.loads(line)))) + "\n")
            answers.flush()
