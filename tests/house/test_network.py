"""The suite's own walls."""

import asyncio
import socket
import urllib.request

import pytest

from tests.conftest import NetworkForbidden


def test_connecting_elsewhere_is_refused() -> None:
    """A plain connect to a documentation address never leaves the process."""
    with socket.socket() as plain, pytest.raises(NetworkForbidden, match=r"192\.0\.2\.1"):
        plain.connect(("192.0.2.1", 80))


def test_names_are_not_looked_up() -> None:
    """Not even a name leaves the machine, whichever library asks."""
    with pytest.raises(NetworkForbidden, match=r"example\.org"):
        urllib.request.urlopen("http://example.org/")


def test_loopback_is_open() -> None:
    """Tests talk to their own servers, with asyncio as with plain sockets."""

    async def call() -> bytes:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"hello")
            writer.close()

        server = await asyncio.start_server(answer, "localhost", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            reader, writer = await asyncio.open_connection("localhost", port)
            read = await reader.read()
            writer.close()
            return read

    assert asyncio.run(call()) == b"hello"
