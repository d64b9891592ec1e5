"""`python -m benchmarks.peers.request_client`: so many requests over so many connections, one after another on each.

A job: `{"port", "key", "model", "connections", "requests"}`; its measurement: latencies' median and 99th percentile in
milliseconds, and requests a second. Raw asyncio protocols: the client must not be what is measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

import uvloop


class Caller(asyncio.Protocol):
    """One connection, asking again as soon as it is answered, while there is something left to ask."""

    def __init__(self, request: bytes, left: list[int], latencies: list[float]) -> None:
        self._request, self._left, self._latencies = request, left, latencies
        self.transport: Any = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._began = 0.0
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to write to."""
        self.transport = transport

    def next(self) -> None:
        """Ask once more, or be done."""
        if not self._left[0]:
            self.done.set_result(None)
            return
        self._left[0] -= 1
        self._began = time.perf_counter()
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Whole answers have a length; anything but 200 ends the measurement."""
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(ConnectionError(self._buffer.decode()))
            return
        self._latencies.append(time.perf_counter() - self._began)
        self._buffer = b""
        self.next()


async def run(job: dict[str, Any]) -> dict[str, float]:
    """One job."""
    body = json.dumps({
        "model": job["model"], "max_tokens": 64, "temperature": 0,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    }).encode()  # fmt: skip
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {job['key']}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    left, latencies = [job["requests"]], []
    loop = asyncio.get_running_loop()
    callers = []
    for _ in range(job["connections"]):
        _, caller = await loop.create_connection(
            lambda: Caller(head.encode() + body, left, latencies), "127.0.0.1", job["port"]
        )
        callers.append(caller)
    began = time.perf_counter()
    for caller in callers:
        caller.next()
    await asyncio.gather(*(caller.done for caller in callers))
    wall = time.perf_counter() - began
    for caller in callers:
        caller.transport.close()
    latencies.sort()
    return {
        "p50_ms": 1000 * latencies[len(latencies) // 2],
        "p99_ms": 1000 * latencies[len(latencies) * 99 // 100],
        "per_second": len(latencies) / wall,
    }


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    answers.write("{}\n")
    answers.flush()
    for line in sys.stdin:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            answers.write(json.dumps(runner.run(run(json.loads(line)))) + "\n")
            answers.flush()
