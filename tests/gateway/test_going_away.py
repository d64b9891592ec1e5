"""Callers that hang up, read slowly or come in crowds; and a server that is told to stop."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from interlace.config import LimitSettings, Settings
from interlace.ledger import Outcome
from tests.support.gateway_thread import Gateway, running_gateway, wait_for
from tests.support.scripted_engine import ScriptedEngine

CHAT = "/v1/chat/completions"


def raw_request(gateway: Gateway, *, model: str, stream: bool, path: str = CHAT) -> socket.socket:
    """Send a request on a socket of our own, and leave the answer unread."""
    body: dict[str, Any] = {"model": model, "stream": stream}
    if path == CHAT:
        body["messages"] = [{"role": "user", "content": "hi"}]
    else:
        body |= {"prompt": ["a", "b"], "max_tokens": 3000}
    content = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", gateway.port))
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gateway.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    connection.sendall(head.encode() + content)
    return connection


def read_answer(connection: socket.socket) -> bytes:
    """A whole answer with a declared length."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(4096)
    head, _, body = received.lower().partition(b"\r\n\r\n")
    length = int(head.partition(b"content-length: ")[2].partition(b"\r")[0])
    while len(body) < length:
        piece = connection.recv(4096)
        received, body = received + piece, body + piece
    return received


def running(gateway: Gateway, model: str) -> Any:
    """The scripted engine behind a model."""
    return gateway.engines[model]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_hanging_up_stops_the_work(gateway: Gateway, stream: bool, path: str) -> None:
    """The engine is cancelled at once, whether the answer was streaming or still being made, and it is billed."""
    engine = running(gateway, "endless")
    prompts = 1 if path == CHAT else 2
    cancelled, settled = engine.cancelled, len(gateway.events)
    connection = raw_request(gateway, model="endless", stream=stream, path=path)
    wait_for(lambda: engine.running == prompts)
    connection.close()
    wait_for(lambda: engine.running == 0)
    wait_for(lambda: len(gateway.events) == settled + 1)
    assert engine.cancelled == cancelled + prompts
    assert gateway.events[-1].outcome is Outcome.CLIENT_GONE
    assert gateway.events[-1].tokens.completion < 3000 * prompts
    wait_for(lambda: gateway.pipeline.admission.running == 0)


def test_a_slow_reader_does_not_hold_the_engine(gateway: Gateway) -> None:
    """A caller that never reads: the engine finishes its work at its own pace, and the caller is dropped."""
    engine = ScriptedEngine(tokens=("word " * 4000,) * 600)
    settings = Settings(home=Path("/nonexistent"), limits=LimitSettings(reader_seconds=5))
    with running_gateway(settings, {"chatty": engine}) as fast:
        connection = raw_request(fast, model="chatty", stream=True)
        wait_for(lambda: engine.finished == 1)  # 12 MB, far more than socket buffers take from it
        wait_for(lambda: fast.events)
        assert fast.events[0].outcome is Outcome.CLIENT_GONE
        assert fast.events[0].tokens.completion == 600
        connection.close()


@pytest.fixture
def narrow() -> Iterator[Gateway]:
    """A gateway that runs one request and lets one wait, over an engine that holds on until it is released."""
    settings = Settings(home=Path("/nonexistent"), limits=LimitSettings(concurrency=1, queue=1), drain_seconds=10)
    with running_gateway(settings, {"held": ScriptedEngine(held=True)}) as running:
        yield running
        if running.thread.is_alive():
            running.call(running.engines["held"].release.set)  # type: ignore[attr-defined]


def test_a_full_queue_is_a_429(narrow: Gateway) -> None:
    """One runs, one waits, the third is told when to come back; the waiting one gets its turn."""
    engine = running(narrow, "held")
    first = raw_request(narrow, model="held", stream=False)
    wait_for(lambda: engine.running == 1)
    second = raw_request(narrow, model="held", stream=False)
    wait_for(lambda: narrow.pipeline.admission.waiting == 1)
    third = raw_request(narrow, model="held", stream=False)
    answer = read_answer(third)
    assert b" 429 " in answer.split(b"\r\n")[0]
    assert b"retry-after: 1" in answer.lower()
    assert b"rate_limit_exceeded" in answer
    narrow.call(engine.release.set)
    for connection in (first, second):
        assert b" 200 " in read_answer(connection).split(b"\r\n")[0]
        connection.close()
    third.close()
    assert [event.outcome for event in narrow.events] == [Outcome.FINISHED, Outcome.FINISHED]


def test_hanging_up_in_the_queue_leaves_it(narrow: Gateway) -> None:
    """A caller that waits for a slot and goes away takes no slot and no place in the queue."""
    engine = running(narrow, "held")
    first = raw_request(narrow, model="held", stream=False)
    wait_for(lambda: engine.running == 1)
    gone = raw_request(narrow, model="held", stream=False)
    wait_for(lambda: narrow.pipeline.admission.waiting == 1)
    gone.close()
    wait_for(lambda: narrow.pipeline.admission.waiting == 0)
    third = raw_request(narrow, model="held", stream=False)
    wait_for(lambda: narrow.pipeline.admission.waiting == 1)
    narrow.call(engine.release.set)
    for connection in (first, third):
        assert b" 200 " in read_answer(connection).split(b"\r\n")[0]
        connection.close()
    wait_for(lambda: len(engine.seen) == 2)


def test_draining_finishes_what_runs(narrow: Gateway) -> None:
    """After the first signal: running streams end well, new connections are refused, the server then stops."""
    engine = running(narrow, "held")
    lines: list[str] = []

    def read() -> None:
        body = {"model": "held", "messages": [{"role": "user", "content": "x"}], "stream": True}
        with httpx.stream(
            "POST", narrow.url + CHAT, json=body, headers=narrow.headers, trust_env=False, timeout=30
        ) as answer:
            lines.extend(answer.iter_lines())

    reader = threading.Thread(target=read)
    reader.start()
    wait_for(lambda: engine.running == 1)
    narrow.call(narrow.server.drain)
    wait_for(lambda: not _accepts(narrow.port))
    narrow.call(engine.release.set)
    reader.join(10)
    assert lines[-2] == "data: [DONE]"
    narrow.thread.join(10)
    assert not narrow.thread.is_alive()


def test_draining_gives_up_after_its_time() -> None:
    """What does not finish within `drain_seconds` is cancelled and settled as such."""
    engine = ScriptedEngine(held=True)
    settings = Settings(home=Path("/nonexistent"), drain_seconds=0.2)
    with running_gateway(settings, {"held": engine}) as gateway:
        connection = raw_request(gateway, model="held", stream=True)
        wait_for(lambda: engine.running == 1)
        gateway.call(gateway.server.drain)
        gateway.thread.join(10)
        assert not gateway.thread.is_alive()
        wait_for(lambda: engine.cancelled == 1)
        assert gateway.events[0].outcome is Outcome.CANCELLED
        received = b""
        while piece := connection.recv(65536):
            received += piece
        assert b"shutting down" in received
        assert received.endswith(b"0\r\n\r\n"), "the answer ends as an answer does"
        connection.close()


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
