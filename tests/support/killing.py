"""Work that is killed at a chosen moment, as `kill -9` does it: in a process of its own, which kills itself before its
n-th change of the disk or word over a socket, or before the n-th line of ours that it comes to.

The processes are forked from one that has loaded what they need, so that a hundred of them take seconds.
"""

from __future__ import annotations

import builtins
import io
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Literal

Moments = Literal["changes", "lines"]
"""Which moments there are: changes of the disk, files opened and not yet written, and words over a socket; or lines of
`interlace`, when first come to."""

_CALLS = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"})
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_OURS = f"{os.sep}interlace{os.sep}"
_SECONDS = 60

_forge = multiprocessing.get_context("forkserver")


def preload(*modules: str) -> None:
    """Have these loaded in what all later processes are forked from."""
    _forge.set_forkserver_preload([__name__, *modules])


def killed_at(moment: int, work: Callable[..., object], *given: Any, moments: Moments = "changes") -> bool:
    """Do the work in another process until that moment, the first of which is 0. Whether it came to it, and was
    killed; else it has done the work. Raises `AssertionError` where it ended otherwise."""
    process = _forge.Process(target=_do, args=(moment, moments, work, given))
    process.start()
    process.join(_SECONDS)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode in (0, -signal.SIGKILL), f"it ended with {process.exitcode}"
    killed = process.exitcode != 0
    process.close()
    return killed


def _do(moment: int, moments: Moments, work: Callable[..., object], given: tuple[Any, ...]) -> None:
    count = _Count(moment)
    if moments == "changes":
        _count_changes(count)
    else:
        sys.settrace(_tracer(count))
    work(*given)
    os._exit(0)


def _count_changes(count: Callable[[], None]) -> None:
    sync, send, plain_open = os.fsync, socket.socket.sendall, io.open

    def fsync(descriptor: int) -> None:
        count()
        sync(descriptor)

    def sendall(self: socket.socket, *words: Any) -> None:
        count()
        send(self, *words)

    def opened(*given: Any, **more: Any) -> Any:
        file = plain_open(*given, **more)
        if file.writable():
            count()
        return file

    os.fsync, socket.socket.sendall = fsync, sendall  # type: ignore[assignment, method-assign]
    io.open = builtins.open = opened
    sys.addaudithook(lambda event, arguments: count() if _is_change(event, arguments) else None)


class _Count:
    def __init__(self, left: int) -> None:
        self._left = left

    def __call__(self) -> None:
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(_SECONDS)
        self._left -= 1


def _is_change(event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "open":
        return isinstance(arguments[2], int) and bool(arguments[2] & _WRITES) and arguments[0] != os.devnull
    return event in _CALLS


def _tracer(count: _Count) -> Callable[[FrameType, str, Any], Any]:
    seen: set[tuple[str, int]] = set()

    def line(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line" and (place := (frame.f_code.co_filename, frame.f_lineno)) not in seen:
            seen.add(place)
            count()
        return line

    def call(frame: FrameType, _event: str, _: Any) -> Any:
        return line if _OURS in frame.f_code.co_filename else None

    return call


def tree(folder: Path) -> set[str]:
    """Everything that lies below a folder."""
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*")}
