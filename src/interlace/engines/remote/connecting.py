"""A connection to a host that may have several addresses: the next is tried where one does not answer soon."""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any

NEXT_SECONDS = 0.25  # as RFC 8305 has it

_Address = tuple[int, int, int, str, Any]


async def connect(
    loop: asyncio.AbstractEventLoop,
    protocol: Callable[[], asyncio.Protocol],
    host: str,
    port: int,
    context: ssl.SSLContext | None,
) -> None:
    """Connect the protocol; raises `OSError`, or `ssl.SSLError` where the server cannot prove who it is."""
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    connected = await _first(loop, _taking_turns(found))
    try:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.create_connection(
            protocol, sock=connected, ssl=context, server_hostname=host if context is not None else None
        )
    except BaseException:
        connected.close()
        raise


async def _first(loop: asyncio.AbstractEventLoop, addresses: list[_Address]) -> socket.socket:
    """The first of the addresses that answers, each asked a little later than the one before."""
    if len(addresses) == 1:
        return await _reached(loop, addresses[0])
    waiting = list(addresses)
    trying: set[asyncio.Task[socket.socket]] = set()
    problem: BaseException = OSError("no address")
    try:
        while waiting or trying:
            if waiting:
                trying.add(asyncio.create_task(_reached(loop, waiting.pop(0))))
            done, trying = await asyncio.wait(
                trying, timeout=NEXT_SECONDS if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            good = [task for task in done if task.exception() is None]
            trying.update(good[1:])
            if good:
                return good[0].result()
            problem = next((error for task in done if (error := task.exception()) is not None), problem)
    finally:
        for task in trying:
            task.cancel()
            task.add_done_callback(_close_late)
    raise problem


def _close_late(task: asyncio.Task[socket.socket]) -> None:
    """One that answered although another was first."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()


async def _reached(loop: asyncio.AbstractEventLoop, address: _Address) -> socket.socket:
    family, kind, protocol, _, where = address
    made = socket.socket(family, kind, protocol)
    try:
        made.setblocking(False)
        await loop.sock_connect(made, where)
    except BaseException:
        made.close()
        raise
    return made


def _taking_turns(found: Sequence[_Address]) -> list[_Address]:
    """Families in turns, beginning with the one that the resolver prefers."""
    by_family: dict[int, list[_Address]] = {}
    for address in found:
        by_family.setdefault(address[0], []).append(address)
    mixed = itertools.chain.from_iterable(itertools.zip_longest(*by_family.values()))
    return [address for address in mixed if address is not None]
