"""Callers that hang up, and callers that do not read: what they hold, and for how long."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from interlace.ledger import Outcome
from tests.support.served import CHAT, Answer, Served, ask, long_chat, patiently, until

A_WHILE, TOO_MANY = 700, 3000  # tokens, and so steps


@pytest.mark.parametrize("how", ["closed", "reset"])
def test_hanging_up_in_a_stream_stops_the_work(both: Served, how: str) -> None:
    """The slot and the cache are free again, at once."""
    with _neighbour(both) as settled:
        with _caller(both, long_chat(TOO_MANY)) as caller:
            received = b""
            while received.count(b"data: ") < 5:
                received += caller.recv(65536)
            patiently(lambda: both.metric("interlace_engine_running") == 2)
            if how == "reset":
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        _check_stopped(both, settled)


@pytest.mark.parametrize("n", [1, 16])
def test_hanging_up_before_a_whole_answer_stops_the_work(both: Served, n: int) -> None:
    """The same for a caller that has not got a byte yet, with all the sequences it asked for."""
    with _neighbour(both) as settled:
        with _caller(both, long_chat(TOO_MANY, stream=False, n=n)):
            patiently(lambda: both.metric("interlace_engine_running") == n + 1)
        _check_stopped(both, settled)


async def test_a_caller_that_reads_nothing_slows_nobody(both: Served) -> None:
    """Its answer is generated to the end and its slot freed while it waits in the gateway; seven others get theirs;
    and when it reads at last it finds everything there."""
    tokens, n = 90, 24
    body = long_chat(tokens, n=n, logprobs=True, top_logprobs=20)  # more bytes than the kernel's buffers can hold
    with _caller(both, body, receive_buffer=4096) as slow:
        await until(lambda: both.metric("interlace_engine_running") == n)
        async with both.callers() as client:
            others = await asyncio.gather(*(ask(client, long_chat(40)) for _ in range(7)))
        assert [(a.status, a.done, a.finish_reason) for a in others] == [(200, True, "length")] * 7
        await until(lambda: both.metric("interlace_engine_running") == 0)
        assert both.metric("interlace_requests_running") == 1, "the kernel took it all; nothing was shown"
        answer = await asyncio.to_thread(_read_to_end, slow)
    assert (answer.done, answer.finish_reason) == (True, "length")
    logprobs = [t for e in answer.events for c in e["choices"] for t in (c["logprobs"] or {}).get("content", ())]
    assert len(logprobs) == n * tokens
    await until(both.idle)


@contextmanager
def _caller(there: Served, body: dict[str, Any], receive_buffer: int | None = None) -> Iterator[socket.socket]:
    """A plain socket on which the request has been sent; closed at the end."""
    with socket.socket() as caller:
        if receive_buffer is not None:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        caller.settimeout(90)
        caller.connect(("127.0.0.1", there.port))
        payload = json.dumps(body).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {there.key}\r\nconnection: close\r\n"
        caller.sendall(
            f"{head}content-type: application/json\r\ncontent-length: {len(payload)}\r\n\r\n".encode() + payload
        )
        yield caller


@contextmanager
def _neighbour(there: Served) -> Iterator[int]:
    """A request that runs beside, for fewer steps than what is to be stopped: the clock of these tests. It hangs up at
    the end. Gives the number of requests settled before."""
    settled = len(there.usage())
    with _caller(there, long_chat(A_WHILE)):
        patiently(lambda: there.metric("interlace_engine_running") == 1)
        yield settled
    patiently(there.idle)


def _check_stopped(there: Served, settled: int) -> None:
    """Only the neighbour runs, and still does: had the work gone on, the neighbour would have ended before it."""
    patiently(lambda: there.metric("interlace_engine_running") == 1)
    (usage,) = there.usage()[settled:]
    assert usage.outcome is Outcome.CLIENT_GONE
    assert usage.tokens.completion < TOO_MANY


def _read_to_end(caller: socket.socket) -> Answer:
    """The events of a chunked answer, whose last chunk must be there."""
    received = b""
    while piece := caller.recv(65536):
        received += piece
    _, _, rest = received.partition(b"\r\n\r\n")
    body = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            break
        body, rest = body + rest[:length], rest[length + 2 :]
    events = [event.removeprefix("data: ") for event in body.decode().split("\n\n") if event]
    return Answer(status=200, events=[json.loads(e) for e in events if e != "[DONE]"], done=events[-1] == "[DONE]")
