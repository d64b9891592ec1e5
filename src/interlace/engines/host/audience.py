"""Who hears what a step brought: the gateway process that started the host, and those that attached to it.

A request's id says whose it is. One that does not read must not hold up the others: what its socket does not take at
once waits for it in memory, and past a bound it is let go.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from interlace.engines.host.protocol import Failure, Step, WireOutcome
from interlace.engines.host.stepper import step_frames
from interlace.engines.types import Embeddings, Usage

log = logging.getLogger(__name__)

MOST_WAITING_BYTES = 64 << 20
_LONGEST_ADDRESS = 100  # bytes of a Unix socket's: 108 on Linux, 104 on macOS, with the zero at its end

Frames = Callable[[bytearray], object]


class Member:
    """One process that attached. `send` never waits: it may be called from any thread."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._waiting = bytearray()
        self._gone = False
        self.prefix = ""
        self._open: set[str] = set()

    def send(self, frame: bytearray) -> None:
        """Send one frame, now or as soon as the other side reads; nothing once it is gone."""
        with self._lock:
            if self._gone:
                return
            if self._waiting:
                self._waiting += frame
                if len(self._waiting) > MOST_WAITING_BYTES:
                    log.error("a gateway process does not read; it is let go")
                    self._close()
                return
            sent = self._send_now(frame)
            if sent < len(frame) and not self._gone:
                self._waiting += frame[sent:]
                threading.Thread(target=self._drain, name="sender", daemon=True).start()

    def _send_now(self, frame: bytearray) -> int:
        try:
            return self._channel.send(frame, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            self._close()
            return 0

    def _drain(self) -> None:
        """Send what waits, as fast as it is read. Runs in a thread, while there is anything."""
        while True:
            with self._lock:
                if self._gone or not self._waiting:
                    return
                piece = bytes(self._waiting[: 1 << 16])
            try:
                sent = self._channel.send(piece)
            except OSError:
                with self._lock:
                    self._close()
                return
            with self._lock:
                del self._waiting[:sent]

    def opened(self, id: str) -> None:
        """A request of it has come."""
        self._open.add(id)

    def ended(self, id: str) -> None:
        """Its last outcome is on its way."""
        self._open.discard(id)

    def close(self) -> set[str]:
        """It is gone; the requests that nobody waits for any more."""
        with self._lock:
            self._close()
        return set(self._open)

    def _close(self) -> None:
        self._gone = True
        self._waiting.clear()
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)


class Audience:
    """All of them. `first` writes to the gateway process that started the host."""

    def __init__(self, first: Frames) -> None:
        self._first = first
        self._members: dict[str, Member] = {}

    def member(self, channel: socket.socket) -> Member:
        """One that has connected, and not yet said who it is."""
        return Member(channel)

    def join(self, prefix: str, member: Member) -> None:
        """Outcomes of ids that begin with `prefix` are for it."""
        member.prefix = prefix
        self._members = {**self._members, prefix: member}  # replaced whole: the stepping thread reads it meanwhile

    def leave(self, member: Member) -> set[str]:
        """It is gone; the ids of its requests that run."""
        self._members = {prefix: one for prefix, one in self._members.items() if one is not member}
        return member.close()

    def tell(self, step: Step) -> None:
        """Everybody gets the counters, and outcomes of requests of its own. On the stepping thread."""
        members = self._members
        if not members:
            for frame in step_frames(step):
                self._first(frame)
            return
        parts: defaultdict[str, list[tuple[str, WireOutcome]]] = defaultdict(list)
        for id, outcome in step.outcomes:
            prefix = id[: id.find("|") + 1]
            parts[prefix].append((id, outcome))
            if isinstance(outcome, Usage | Embeddings | Failure) and (member := members.get(prefix)):
                member.ended(id)
        for prefix, member in members.items():
            if prefix in parts or step.health is not None:
                for frame in step_frames(Step(parts[prefix], step.health)):
                    member.send(frame)
        if "" in parts or step.health is not None:
            for frame in step_frames(Step(parts[""], step.health)):
                self._first(frame)


def listen(path: Path, attached: Callable[[socket.socket], None]) -> None:
    """Listen there, and give every connection to `attached` in a thread of its own. Raises `OSError`."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path.unlink(missing_ok=True)
    with short_address(path) as address:
        server.bind(address)
    server.listen(64)

    def accept() -> None:
        while True:
            channel, _ = server.accept()
            threading.Thread(target=attached, args=(channel,), name="reader of a worker", daemon=True).start()

    threading.Thread(target=accept, name="listener", daemon=True).start()


@contextlib.contextmanager
def short_address(path: Path) -> Iterator[str]:
    """An address for `bind` or `connect` while inside: a long path is reached through its open folder (Linux)."""
    if len(os.fsencode(path)) <= _LONGEST_ADDRESS or sys.platform != "linux":
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
