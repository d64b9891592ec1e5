"""Workers are replaced one after the other: the next one serves before the one that it replaces drains.

Both accept from the same socket for a while, so nobody waits for the other's drain. The new one says that it serves as
services say it to systemd (`notify`), to a socket of ours.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

log = logging.getLogger(__name__)

RISE_SECONDS = 60.0  # how long a new worker may take until it serves


class Replaceable(Protocol):
    """A child of the supervisor."""

    def successor(self) -> Replaceable:
        """Another one for the same socket, not started."""

    def start_telling(self, address: str) -> None:
        """Start it, to tell that address (as `NOTIFY_SOCKET`) when it serves."""

    def lives(self) -> bool:
        """Whether its process is there."""

    def signal(self, number: int) -> None:
        """Send it a signal, if it lives."""


@dataclass
class Rolling:
    """One round over all workers. `workers` is the supervisor's list, whose entries are replaced."""

    workers: list[Replaceable]
    leave_seconds: float  # after which a worker that drains is killed
    now: Callable[[], float] = time.monotonic
    rising: Replaceable | None = None
    leaving: Replaceable | None = None
    _at: int = 0
    _until: float = 0.0
    _link: socket.socket | None = field(default=None, repr=False)

    def look(self) -> bool:
        """Do what there is to do, without waiting; whether the round goes on."""
        if self.leaving is not None:
            if not self.leaving.lives():
                self.leaving = None
            elif self.now() > self._until:
                self.leaving.signal(signal.SIGKILL)
        elif self.rising is not None:
            return self._look_at_rising(self.rising)
        elif self._at == len(self.workers):
            log.info("every worker was replaced")
            return False
        else:
            self._raise()
        return True

    def children(self) -> Iterator[Replaceable]:
        """Those that are not, or not any more, in the supervisor's list."""
        return (child for child in (self.rising, self.leaving) if child is not None)

    def _raise(self) -> None:
        name = f"interlace-{secrets.token_hex(8)}"
        self._link = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._link.bind(f"\0{name}")
        self.rising = self.workers[self._at].successor()
        self.rising.start_telling(f"@{name}")
        self._until = self.now() + RISE_SECONDS

    def _look_at_rising(self, rising: Replaceable) -> bool:
        assert self._link is not None
        serves = False
        with contextlib.suppress(BlockingIOError):
            serves = self._link.recv(64) == b"READY=1"
        if not serves and rising.lives() and self.now() < self._until:
            return True
        self._link.close()
        self.rising = None
        if not serves:
            rising.signal(signal.SIGKILL)
            log.error("a new worker does not begin to serve, so the others stay")
            return False
        self.leaving, self.workers[self._at] = self.workers[self._at], rising
        self.leaving.signal(signal.SIGTERM)
        self._until = self.now() + self.leave_seconds
        self._at += 1
        return True
