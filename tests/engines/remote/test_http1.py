"""Our HTTP client against servers that say what they want: what is HTTP is read, what is not is an error, and nothing
hangs, grows or is sent twice."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlace.engines.remote.connecting import _taking_turns, connect
from interlace.engines.remote.http1 import MOST_HEAD_BYTES
from interlace.engines.remote.transport import Provider
from interlace.engines.remote.wire import Outgoing
from interlace.errors import EngineFailed, EngineUnavailable, InterlaceError
from tests.support.asking import remote_settings

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
WHOLE = OK + b"content-length: 2\r\n\r\n{}"
SECONDS = 5.0


@dataclass
class Server:
    """Answers each request of each connection with the next pieces of its script; `None` in them hangs up."""

    script: Sequence[Sequence[bytes | None]]
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                for piece in self.script[min(len(self.requests), len(self.script)) - 1]:
                    if piece is None:
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.01)
        except (OSError, EOFError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def talking(*script: Sequence[bytes | None], connections: int = 10) -> AsyncGenerator[tuple[Server, Provider]]:
    """A server with a script, and our side of it."""
    server = Server(script)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    server.url = f"http://127.0.0.1:{port}/v1/x?y=%2F"
    provider = Provider(remote_settings(server.url, "m", connections=connections))
    try:
        yield server, provider
    finally:
        await provider.close()
        listening.close()


async def asked(server: Server, provider: Provider, most: int = 10**8) -> tuple[int, bytes]:
    """Status and body of one exchange."""
    until = asyncio.get_running_loop().time() + SECONDS
    reply = await provider.send(Outgoing(server.url, b'{"a":1}', {"Authorization": "Bearer k"}), until)
    try:
        return reply.status, await reply.whole(until, most)
    finally:
        reply.close()


GOOD: dict[str, tuple[list[bytes | None], int, bytes]] = {
    "length": ([WHOLE], 200, b"{}"),
    "byte by byte": ([WHOLE[i : i + 1] for i in range(len(WHOLE))], 200, b"{}"),
    "chunks": ([OK + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n", b"1;x=y\r\n}\r\n0\r\nt: 1\r\n\r\n"], 200, b"{}"),
    "until it ends": ([OK + b"\r\n{", b"}", None], 200, b"{}"),
    "HTTP/1.0": ([b"HTTP/1.0 200 OK\r\n\r\n{}", None], 200, b"{}"),
    "after 100": ([b"HTTP/1.1 100 Continue\r\n\r\n", WHOLE], 200, b"{}"),
    "after 103": ([b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + WHOLE], 200, b"{}"),
    "nothing in it": ([b"HTTP/1.1 204 No Content\r\n\r\n"], 204, b""),
    "closing": ([OK + b"connection: close\r\ncontent-length: 2\r\n\r\n{}", None], 200, b"{}"),
    "more than was asked": ([WHOLE + WHOLE], 200, b"{}"),
}


@pytest.mark.parametrize("how", GOOD)
async def test_what_is_http_is_read(how: str) -> None:
    """Every way to say how long an answer is; and after it the next request is answered, on whatever connection."""
    pieces, status, body = GOOD[how]
    async with talking(pieces, [WHOLE]) as (server, provider):
        assert await asked(server, provider) == (status, body)
        assert await asked(server, provider) == (200, b"{}")
        assert len(server.requests) == 2
        line, _, rest = server.requests[0].partition(b"\r\n")
        assert line == b"POST /v1/x?y=%2F HTTP/1.1"  # as it stands: it may be signed
        assert b"authorization: bearer k" in rest.lower()
        assert rest.endswith(b'\r\n\r\n{"a":1}')


BAD: dict[str, list[bytes | None]] = {
    "no HTTP": [b"SSH-2.0-x\r\n", None],
    "a word": [b"nonsense"],
    "another protocol": [b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"],
    "two lengths": [OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}", None],
    "length and chunks": [OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}", None],
    "a length below nothing": [OK + b"content-length: -1\r\n\r\n{}", None],
    "a header without end": [OK + b"x: " + b"y" * (MOST_HEAD_BYTES + 1)],
    "headers without end": [OK + b"x: y\r\n" * (MOST_HEAD_BYTES // 6 + 1)],
    "trailers without end": [OK + b"transfer-encoding: chunked\r\n\r\n0\r\n", *[b"x: y\r\n" * 1000] * 12],
    "a chunk mark without end": [OK + b"transfer-encoding: chunked\r\n\r\n1;", *[b"x" * 6000] * 12],
    "early hints without end": [b"HTTP/1.1 103 x\r\n\r\n" * (MOST_HEAD_BYTES // 18 + 9)],
    "half a body": [OK + b"content-length: 9\r\n\r\n{", None],
    "half a chunk": [OK + b"transfer-encoding: chunked\r\n\r\n9\r\n{", None],
    "no last chunk": [OK + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n", None],
    "half a head": [OK, None],
}


@pytest.mark.parametrize("how", BAD)
async def test_what_is_no_http_is_an_error(how: str) -> None:
    """None of it hangs, fills memory or is taken for an answer; the next request is answered on a new connection."""
    async with talking(BAD[how], [WHOLE]) as (server, provider):
        with pytest.raises(EngineFailed):
            await asked(server, provider)
        assert await asked(server, provider) == (200, b"{}")
        assert server.connections == 2
        assert len(server.requests) == 2


async def test_a_request_goes_out_once_unless_a_kept_connection_was_gone() -> None:
    """A server that takes a request and hangs up may have done the work: a new connection is not asked again. One that
    had been kept may have been closed meanwhile: there, and once, another try is made."""
    async with talking([None], [WHOLE]) as (server, provider):
        with pytest.raises(EngineFailed, match="ended the connection"):
            await asked(server, provider)
        assert len(server.requests) == 1
    async with talking([WHOLE], [None], [WHOLE]) as (server, provider):
        await asked(server, provider)
        assert await asked(server, provider) == (200, b"{}")
        assert (len(server.requests), server.connections) == (3, 2)
    async with talking([WHOLE], [None], [None], [WHOLE]) as (server, provider):
        await asked(server, provider)
        with pytest.raises(EngineFailed, match="ended the connection"):
            await asked(server, provider)
        assert len(server.requests) == 3


async def test_a_kept_connection_on_which_something_comes_unasked_is_left() -> None:
    """What was sent before anybody asked must not answer the next request."""
    async with talking([WHOLE, OK + b"content-length: 4\r\n\r\nevil"], [WHOLE]) as (server, provider):
        assert await asked(server, provider) == (200, b"{}")
        await asyncio.sleep(0.1)
        assert await asked(server, provider) == (200, b"{}")
        assert server.connections == 2


async def test_an_answer_is_bounded_and_an_unread_one_makes_its_server_wait() -> None:
    """`most_bytes` ends an answer; and what nobody reads does not pile up here."""
    async with talking([OK + b"content-length: 3000000\r\n\r\n" + b"x" * 3_000_000], [WHOLE]) as (server, provider):
        with pytest.raises(EngineFailed, match="endless answer"):
            await asked(server, provider, most=1000)
        assert await asked(server, provider) == (200, b"{}")
    big = 32 << 20
    async with talking([OK + b"content-length: %d\r\n\r\n" % big + b"x" * big]) as (server, provider):
        until = asyncio.get_running_loop().time() + 30
        reply = await provider.send(Outgoing(server.url, b"{}"), until)
        await asyncio.sleep(0.2)
        connection = reply._connection
        assert connection is not None
        assert connection._waiting_bytes < 2 << 20
        assert len(await reply.whole(until, big)) == big
        reply.close()


async def test_a_header_cannot_become_two() -> None:
    """A line break in a value is refused before anything is sent."""
    async with talking([WHOLE]) as (server, provider):
        for evil in ("a\r\nX: y", "a\nb", "a\rb", "a\0"):
            with pytest.raises(EngineFailed, match="line break"):
                await provider.send(Outgoing(server.url, b"{}", {"X": evil}), asyncio.get_running_loop().time() + 1)
        for url in ("ftp://x/", "http://", "http://a b/", "http://x:99999999/"):
            with pytest.raises(EngineUnavailable):
                await provider.send(Outgoing(url, b"{}"), asyncio.get_running_loop().time() + 1)
        assert server.requests == []


async def test_who_waits_for_a_connection_gets_one_in_turn_or_gives_up() -> None:
    """With one connection, ten requests are answered one after the other; one that is cut off makes room, too; and
    waiting has an end."""
    async with talking([WHOLE], connections=1) as (server, provider):
        assert await asyncio.gather(*(asked(server, provider) for _ in range(10))) == [(200, b"{}")] * 10
        assert server.connections == 1
    async with talking([OK + b"content-length: 9\r\n\r\n{"], connections=1) as (server, provider):
        loop = asyncio.get_running_loop()
        reply = await provider.send(Outgoing(server.url, b"{}"), loop.time() + SECONDS)
        with pytest.raises(TimeoutError):
            await provider.send(Outgoing(server.url, b"{}"), loop.time() + 0.05)
        waiting = asyncio.create_task(provider.send(Outgoing(server.url, b"{}"), loop.time() + SECONDS))
        await asyncio.sleep(0.05)
        reply.close()
        (await waiting).close()
        assert server.connections == 2


@given(data=st.binary(max_size=300), start=st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", OK, WHOLE]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_bytes_do_anything_but_answer_or_fail(data: bytes, start: bytes) -> None:
    """Whatever a server sends before it hangs up, there is an answer or an error of ours."""

    async def run() -> None:
        async with talking([start + data, None]) as (server, provider):
            try:
                await asked(server, provider)
            except InterlaceError:
                pass

    asyncio.run(run())


async def test_the_next_address_is_tried_where_one_does_not_answer() -> None:
    """A host with a broken address before a good one is reached; families take turns; and all of them refusing is an
    error."""
    six, four = (socket.AF_INET6, socket.SOCK_STREAM, 6, ""), (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    found = [(*six, ("::1", 1)), (*six, ("::2", 1)), (*four, ("1.1.1.1", 1))]
    assert [address[4][0] for address in _taking_turns(found)] == ["::1", "1.1.1.1", "::2"]
    async with talking([WHOLE]) as (server, _):
        port = int(server.url.split(":")[2].split("/")[0])
        loop = asyncio.get_running_loop()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            closed = probe.getsockname()[1]

        class Loop:
            """The running loop, with a resolver that knows two addresses."""

            def __getattr__(self, name: str) -> object:
                return getattr(loop, name)

            async def getaddrinfo(self, *_: object, **__: object) -> list[object]:
                return [(*four, ("127.0.0.1", closed)), (*four, ("127.0.0.1", port))]

        made: list[asyncio.Protocol] = []

        def protocol() -> asyncio.Protocol:
            made.append(asyncio.Protocol())
            return made[0]

        await connect(Loop(), protocol, "somewhere", port, None)  # type: ignore[arg-type]
        assert len(made) == 1
        await asyncio.sleep(0)
