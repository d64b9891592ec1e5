"""The gateway's end of a connection to an engine host: one decode per frame, one wake-up per request per frame."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import cast

from interlace.config import ModelSettings
from interlace.engines.host.protocol import (
    Adapter,
    Attach,
    Cancel,
    Failure,
    FrameError,
    FrameReader,
    LoadFailed,
    Progress,
    Ready,
    Setup,
    Step,
    WireOutcome,
    decode_from_host,
    encode_frame,
    encode_request,
)
from interlace.engines.types import EmbedRequest, GenerateRequest, Health

log = logging.getLogger(__name__)


class Stream:
    """What came for one request and was not taken yet: at most what the request may generate."""

    __slots__ = ("_arrived", "_waiter", "id")

    def __init__(self, id: str) -> None:
        self.id = id  # on the wire
        self._arrived: list[WireOutcome] = []
        self._waiter: asyncio.Future[None] | None = None

    def put(self, outcome: WireOutcome) -> None:
        """Add an outcome and wake the consumer, once for however many it has not yet looked at."""
        self._arrived.append(outcome)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[WireOutcome]:
        """All outcomes that have come, at least one, in order."""
        while not self._arrived:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        arrived, self._arrived = self._arrived, []
        return arrived


class Connection(asyncio.Protocol):
    """One life of a host, from `setup` to the end of the stream.

    `loaded` becomes `Ready`, or the `LoadFailed` that the host reports, or None when it goes away before either.
    `closed` is done when nothing more will come; every stream still open then has got its failure.
    """

    def __init__(self, name: str, on_progress: Callable[[str], None], prefix: str = "") -> None:
        loop = asyncio.get_running_loop()
        self.loaded: asyncio.Future[Ready | LoadFailed | None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.health = Health("ready")  # the host's counters, as last reported
        self.end_of_streams = Failure("EngineFailed", f"the engine of model {name} died while it ran this request")
        self._on_progress = on_progress
        self._prefix = prefix  # of all ids, where the host has others to answer
        self._frames = FrameReader()
        self._streams: dict[str, Stream] = {}
        self._numbers = itertools.count()
        self._transport: asyncio.WriteTransport | None = None

    # --- asyncio's side ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        try:
            for body in self._frames.feed(data):
                self._take(decode_from_host(body))
        except FrameError:
            log.exception("an engine host does not speak our protocol; its connection is closed")
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Called by asyncio, last and once."""
        self._transport = None
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.put(self.end_of_streams)
        if not self.loaded.done():
            self.loaded.set_result(None)
        if not self.closed.done():
            self.closed.set_result(None)

    def _take(self, message: Step | Progress | Ready | LoadFailed) -> None:
        if isinstance(message, Step):
            streams = self._streams
            for id, outcome in message.outcomes:
                if stream := streams.get(id):
                    stream.put(outcome)
            if message.health is not None:
                self.health = message.health
        elif isinstance(message, Progress):
            self._on_progress(message.text)
        elif not self.loaded.done():
            if isinstance(message, Ready):
                self.health = message.health
            self.loaded.set_result(message)

    # --- our side ---

    def set_up(self, core: str, settings: ModelSettings, home: str, listen: str = "") -> None:
        """Tell the host what to load, and where to listen for others."""
        self._write(encode_frame(Setup(core, settings, home, listen)))

    def attach(self) -> None:
        """Tell a host that listens who we are."""
        self._write(encode_frame(Attach(self._prefix)))

    def adapter(self, name: str, folder: str) -> None:
        """Tell the host where the adapter `name` lies from now on; "": nowhere."""
        self._write(encode_frame(Adapter(name, folder)))

    def open(self, request: GenerateRequest | EmbedRequest, *, count: bool = False) -> Stream:
        """Send a request, to be run or only counted.

        Raises `InvalidRequest` or `PayloadTooLarge` where it cannot be carried.

        Its id on the wire is our own: a caller's may come twice, or come back while the old one's last frame is on
        its way.
        """
        stream = Stream(f"{self._prefix}{request.id}#{next(self._numbers)}")
        frame = encode_request(stream.id, request, count=count)
        self._streams[stream.id] = stream
        if self._transport is None:
            stream.put(self.end_of_streams)
        self._write(frame)
        return stream

    def finish(self, stream: Stream, *, cancel: bool) -> None:
        """Forget a stream; `cancel` unless its last outcome was seen. Never waits."""
        if self._streams.pop(stream.id, None) and cancel:
            self._write(encode_frame(Cancel(stream.id)))

    def abort(self) -> None:
        """Close at once; whatever was not yet sent is lost."""
        if self._transport is not None:
            self._transport.abort()

    def _write(self, frame: bytearray) -> None:
        if self._transport is not None:
            self._transport.write(frame)
