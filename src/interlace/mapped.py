"""Memory that several processes of one machine count in: named slots of whole numbers, each with a lock of its own.

    area = Area(fd, numbers, repair)      `numbers` whole numbers a slot, all 0 at first
    slot = area.slot("key_1")             found or made, the same at every process
    with slot:                            nobody else is inside; what a process left torn at its death is repaired
        slot.view[slot.at] += 1

A number is stored by one instruction, so no death leaves half of one. What several numbers say together may be torn:
each slot has a mark for that, which is set while a process is inside, and `repair` is called for who finds it set.

Locks are robust mutexes of the C library where there are any (Linux): the kernel frees one whose owner dies, and one
that nobody holds costs no system call. Elsewhere they are record locks of the file, which the kernel frees as well.
Taken and freed, a mutex costs 0.2 µs and a record lock 1.2 µs (decision 0016).
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from interlace.errors import LedgerUnavailable

if sys.platform != "win32":  # where there is one process only
    import fcntl

NUMBER_BYTES = 8
LOCK_NUMBERS = 8  # 64 bytes: no C library's mutex is larger than 48
NAME, MARK, BODY = LOCK_NUMBERS, LOCK_NUMBERS + 2, LOCK_NUMBERS + 4  # a name is a digest of two numbers
SEGMENT_SLOTS = 1024  # by so many it grows
PATIENCE_SECONDS = 1.0  # for a lock that is held for microseconds: its owner was stopped, and still lives
PAUSE_SECONDS = 50e-6

Repair = Callable[[memoryview, int], None]
"""Makes what a slot's numbers say together true again; gets the view, and where the slot's numbers begin."""


class Locks(Protocol):
    """Locks at places; whoever holds one is never asked to take it again."""

    def make(self, place: Any) -> None:
        """A lock that nobody holds, where nobody looks yet."""
        ...

    def take(self, place: Any) -> bool:
        """Take it, if nobody holds it."""
        ...

    def free(self, place: Any) -> None:
        """Let it go."""
        ...


class Mutexes:
    """Robust mutexes of the C library; a place is an address."""

    SHARED, ROBUST = 1, 1  # as pthread.h numbers them, in glibc and musl

    def __init__(self) -> None:
        library = ctypes.PyDLL(None)  # none of these calls waits
        self._attributes = ctypes.create_string_buffer(64)
        library.pthread_mutexattr_init(self._attributes)
        library.pthread_mutexattr_setpshared(self._attributes, self.SHARED)
        library.pthread_mutexattr_setrobust(self._attributes, self.ROBUST)
        self._library = library
        self._try, self.free = library.pthread_mutex_trylock, library.pthread_mutex_unlock

    def make(self, place: ctypes.c_void_p) -> None:
        """See `Locks`."""
        self._library.pthread_mutex_init(place, self._attributes)

    def take(self, place: ctypes.c_void_p) -> bool:
        """See `Locks`. After its owner's death it is ours, and said to be whole: the slot's mark tells the rest."""
        code: int = self._try(place)
        if code == errno.EOWNERDEAD:
            self._library.pthread_mutex_consistent(place)
            return True
        return code == 0


class Records:
    """Record locks; a place is the number of a byte. They are of a process, so one process takes each once."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def make(self, place: int) -> None:
        """There is nothing to make."""

    def take(self, place: int) -> bool:
        """See `Locks`."""
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def free(self, place: int) -> None:
        """See `Locks`."""
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, place)


class Slot:
    """One name's numbers: `view[at]` and on. Inside `with`, nobody else is; a single number may also be read, and one
    that only this process writes be written, without."""

    __slots__ = ("_locks", "_mark", "_place", "_repair", "at", "view")

    def __init__(self, view: memoryview, start: int, locks: Locks, place: Any, repair: Repair) -> None:
        self.view, self.at, self._mark = view, start + BODY, start + MARK
        self._locks, self._place, self._repair = locks, place, repair

    def __enter__(self) -> None:
        """Raises `LedgerUnavailable` when whoever is inside does not leave."""
        if not self._locks.take(self._place):
            self._wait()
        if self.view[self._mark]:
            self._repair(self.view, self.at)
        self.view[self._mark] = 1

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.view[self._mark] = 0
        self._locks.free(self._place)

    def _wait(self) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while not self._locks.take(self._place):
            if time.monotonic() > until:
                raise LedgerUnavailable(
                    "A process of this server that counts this is stopped. Try again soon.", retry_after_seconds=1
                )
            time.sleep(PAUSE_SECONDS)


class Area:
    """See the module. `fd`: of `area_file`; it grows as names come, and is gone with the last process that has it.
    Opened once a process, and used by one thread of it."""

    def __init__(
        self, fd: int, numbers: int, repair: Repair = lambda _, __: None, *, records: bool = sys.platform != "linux"
    ) -> None:
        self._fd, self._repair = fd, repair
        self._size = -(-(BODY + numbers) // 8) * 8  # numbers of a slot: whole cache lines
        grain = max(mmap.ALLOCATIONGRANULARITY, mmap.PAGESIZE)
        self._segment_bytes = -(-self._size * NUMBER_BYTES * SEGMENT_SLOTS // grain) * grain
        self._segments: list[tuple[memoryview, int]] = []  # with the address
        self._locks: Locks = Records(fd) if records else Mutexes()
        self._known: dict[bytes, int] = {}
        self._slots: dict[str, Slot] = {}
        new = os.fstat(fd).st_size == 0
        if new:
            self._grow(1)
        view, place = self._at(0)
        if new:
            self._locks.make(place)
        self._head = Slot(view, 0, self._locks, place, lambda _, __: None)  # its first number: how many slots there are

    def slot(self, name: str) -> Slot:
        """The slot of that name; raises `LedgerUnavailable` where one is needed and there is no room for it."""
        found = self._slots.get(name)
        if found is None:
            digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
            with self._head:
                number = self._look(digest) or self._make(digest)
            found = self._slots[name] = self._open(number)
        return found

    def all(self) -> Iterator[Slot]:
        """Every slot there is."""
        with self._head:
            count = self._head.view[self._head.at]
        return map(self._open, range(1, count + 1))

    def _look(self, digest: bytes) -> int | None:
        """The number of a slot that is there; what others made since is learnt on the way."""
        for number in range(len(self._known) + 1, self._head.view[self._head.at] + 1):
            view, _ = self._at(number)
            start = number % SEGMENT_SLOTS * self._size + NAME
            self._known[view[start : start + 2].tobytes()] = number
        return self._known.get(digest)

    def _make(self, digest: bytes) -> int:
        number = self._head.view[self._head.at] + 1
        self._grow(number // SEGMENT_SLOTS + 1)
        view, place = self._at(number)
        start = number % SEGMENT_SLOTS * self._size
        self._locks.make(place)
        view[start + NAME : start + NAME + 2] = memoryview(digest).cast("q")
        self._head.view[self._head.at] = number  # from now on it is there
        self._known[digest] = number
        return number

    def _open(self, number: int) -> Slot:
        view, place = self._at(number)
        return Slot(view, number % SEGMENT_SLOTS * self._size, self._locks, place, self._repair)

    def _grow(self, segments: int) -> None:
        """Room is written, not only promised: a disk that is full is an error here, and no signal later."""
        size = os.fstat(self._fd).st_size
        more = segments * self._segment_bytes - size
        if more <= 0:
            return
        try:
            written = os.pwrite(self._fd, bytes(more), size)
        except OSError:
            written = 0
        if written < more:
            os.ftruncate(self._fd, size)
            raise LedgerUnavailable("There is no room to count another key. Try again soon.", retry_after_seconds=5)

    def _at(self, number: int) -> tuple[memoryview, Any]:
        """The view that has a slot, and the place of its lock."""
        segment, within = divmod(number, SEGMENT_SLOTS)
        while len(self._segments) <= segment:
            offset = len(self._segments) * self._segment_bytes
            mapped = mmap.mmap(self._fd, self._segment_bytes, offset=offset)
            address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
            self._segments.append((memoryview(mapped).cast("q"), address))
        view, address = self._segments[segment]
        if isinstance(self._locks, Records):
            return view, number
        return view, ctypes.c_void_p(address + within * self._size * NUMBER_BYTES)


def area_file(folder: Path) -> int:
    """A file for an `Area`, without a name: in memory, or in `folder` where a system has none there. To be handed to
    other processes by its descriptor."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("interlace", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.dup(file.fileno())
