"""What files and batches share: the ledger's database, the folder of contents, and the lock between the two.

A content is kept before a row names it, and removed after the last row that did; both under one lock, so that nobody
removes what somebody else has just come to refer to. One process at a time has a home.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from sqlalchemy import Connection, select

from interlace.deposits.blobs import Blobs
from interlace.ledger import Registry, Store
from interlace.ledger.schema import batches, files

OPEN = ("validating", "in_progress", "finalizing", "cancelling")
"""Statuses of batches that are not over."""


@dataclass
class Shelf:
    """The open registry, and where contents lie."""

    registry: Registry
    blobs: Blobs = field(init=False)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.blobs = Blobs(self.registry.settings.home / "files")

    @property
    def store(self) -> Store:
        """The database."""
        return self.registry.store

    def now(self) -> int:
        """Microseconds since 1970."""
        return self.registry.clock.now()

    def new_id(self, prefix: str, random_digits: int = 12) -> str:
        """A fresh id, in the order of time: twelve hexadecimal digits of it in milliseconds, and random ones."""
        return f"{prefix}{self.now() // 1000:012x}{secrets.token_hex(8)[:random_digits]}"

    def release(self, digests: Iterable[str]) -> None:
        """Remove those contents to which nobody refers any more."""
        with self.lock:
            for digest in set(digests):
                if not self.store.read(lambda connection, one=digest: named(connection, {one})):  # type: ignore[misc]
                    self.blobs.remove(digest)

    def sweep(self) -> int:
        """Remove what a crash left on disk; how many contents."""
        with self.lock:
            there = self.store.read(named)
            return self.blobs.sweep(there.__contains__)


def named(connection: Connection, digests: Collection[str] | None = None) -> set[str]:
    """The contents, of these or of all, that a file or a running batch refers to."""
    of_files, of_batches = select(files.c.digest), select(batches.c.input_digest).where(batches.c.status.in_(OPEN))
    if digests is not None:
        of_files = of_files.where(files.c.digest.in_(digests))
        of_batches = of_batches.where(batches.c.input_digest.in_(digests))
    return {*connection.scalars(of_files), *connection.scalars(of_batches)}
