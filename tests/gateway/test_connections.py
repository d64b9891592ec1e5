"""One connection of a caller, byte by byte: requests one after the other, answers as HTTP wants them, and who goes."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import pytest

from tests.support.gateway_thread import Gateway

BODY = json.dumps({"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}).encode()


def request(gateway: Gateway, body: bytes = BODY, version: str = "1.1", **headers: str) -> bytes:
    """A chat completion, as it is sent."""
    lines = {"host": "x", "content-type": "application/json", "content-length": str(len(body)), **gateway.headers}
    named = {**lines, **{name.replace("_", "-"): value for name, value in headers.items()}}
    head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"POST /v1/chat/completions HTTP/{version}\r\n{head}\r\n".encode() + body


def opened(gateway: Gateway) -> socket.socket:
    """A connection to it."""
    host, port = gateway.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def answer(wire: Any) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the next answer, of known length."""
    status = int(wire.readline().split()[1])
    headers = {}
    while (line := wire.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    return status, headers, wire.read(int(headers["content-length"])) if "content-length" in headers else b""


def test_requests_that_come_at_once_are_answered_in_turn(gateway: Gateway) -> None:
    """Whoever pipelines gets an answer to each request, in their order, each with its own id."""
    with opened(gateway) as caller, caller.makefile("rb") as wire:
        caller.sendall(b"".join(request(gateway, x_request_id=f"number-{i}") for i in range(5)))
        told = [answer(wire) for _ in range(5)]
    assert [status for status, _, _ in told] == [200] * 5
    assert [headers["x-request-id"] for _, headers, _ in told] == [f"number-{i}" for i in range(5)]
    assert all(json.loads(body)["choices"] for _, _, body in told)


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_request_may_come_in_pieces(gateway: Gateway, size: int) -> None:
    """However it is cut, and the connection is good for another one."""
    whole = request(gateway)
    with opened(gateway) as caller, caller.makefile("rb") as wire:
        for _ in range(2):
            for at in range(0, len(whole), size):
                caller.sendall(whole[at : at + size])
            assert answer(wire)[0] == 200


def test_who_waits_for_a_sign_gets_it(gateway: Gateway) -> None:
    """`Expect: 100-continue` is answered before the body has come; a stranger is refused without it."""
    whole = request(gateway, expect="100-continue")
    with opened(gateway) as caller, caller.makefile("rb") as wire:
        caller.sendall(whole[: -len(BODY)])
        assert wire.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert wire.readline() == b"\r\n"
        caller.sendall(BODY)
        assert answer(wire)[0] == 200
        caller.sendall(request(gateway, authorization="Bearer nobody", expect="100-continue")[: -len(BODY)])
        assert answer(wire)[0] == 401


def test_an_older_client_gets_no_chunks(gateway: Gateway) -> None:
    """HTTP/1.0 ends a stream with the connection; what has a length has it, and the connection closes, too."""
    streamed = json.dumps({**json.loads(BODY), "stream": True}).encode()
    with opened(gateway) as caller, caller.makefile("rb") as wire:
        caller.sendall(request(gateway, streamed, version="1.0"))
        status, headers, _ = answer(wire)
        rest = wire.read()
    assert (status, headers["connection"]) == (200, "close")
    assert "transfer-encoding" not in headers
    assert rest.startswith(b"data: ")
    assert rest.endswith(b"data: [DONE]\n\n")
    with opened(gateway) as caller, caller.makefile("rb") as wire:
        caller.sendall(request(gateway, version="1.0"))
        assert json.loads(answer(wire)[2])["choices"]
        assert wire.read() == b""


def test_a_head_has_no_body(gateway: Gateway) -> None:
    """What HEAD asks for has headers only, and the next answer begins right after them."""
    with opened(gateway) as caller, caller.makefile("rb") as wire:
        caller.sendall(b"HEAD /healthz HTTP/1.1\r\nhost: x\r\n\r\n" + request(gateway))
        head = [wire.readline()]
        while head[-1] != b"\r\n":
            head.append(wire.readline())
        assert answer(wire)[0] == 200


def test_who_asked_twice_and_goes_stops_both(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    """The request that runs ends when its caller goes, as such, though another one had come behind it."""
    forever = json.dumps({**json.loads(BODY), "model": "endless", "max_tokens": 3000, "stream": True}).encode()
    with opened(gateway) as caller:
        caller.sendall(request(gateway, forever) + request(gateway))
        assert caller.recv(100).startswith(b"HTTP/1.1 200")
        assert running(gateway)
    until = time.monotonic() + 4  # by itself it would end after six seconds
    while running(gateway) and time.monotonic() < until:
        time.sleep(0.02)
    assert not running(gateway)
    assert "bug" not in caplog.text  # it did not go on until there was nobody to write to


def running(gateway: Gateway) -> bool:
    """Whether anything runs."""
    with opened(gateway) as caller, caller.makefile("rb") as wire:
        caller.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
        return b"\ninterlace_requests_running 0.0\n" not in answer(wire)[2]
