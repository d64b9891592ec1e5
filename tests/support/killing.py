"""Work that is killed at a chosen moment, as `kill -9` does it: in a process of its own, which kills itself before its
n-th change of the disk or word over a socket, or before the n-th line of ours that it comes to.

The processes are forked from one that has loaded what they need, so that a hundred of them take seconds.
"""

from __future__ import annotations

import builtins
import io
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal

Moments = Literal["changes", "lines"]
"""Which moments there are: changes of the disk, files opened and not yet written, and words over a socket; or lines of
`interlace`, when first come to."""

Moment = int | str
"""`3`: before the fourth change. The name of a change, as Python's audit hooks have it, or `fsync`, `opened`, `send` or
`recv`: before the first such. `after` and that: before whatever follows it."""

_CALLS = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"})
_STARTS = frozenset({"subprocess.Popen", "os.posix_spawn", "os.fork"})
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_OURS = f"{os.sep}interlace{os.sep}"
_SECONDS = 60

_forge = multiprocessing.get_context("forkserver")


_preloaded = [__name__]


def preload(module: str) -> None:
    """Have it loaded in what all processes are forked from, where none is yet."""
    _preloaded.append(module)
    _forge.set_forkserver_preload(_preloaded)


def killed_at(moment: Moment, work: Callable[..., object], *given: Any, moments: Moments = "changes") -> bool:
    """Do the work in another process until that moment. Whether it came to it, and was killed; else it has done the
    work. Raises `AssertionError` where it ended otherwise."""
    process = _forge.Process(target=_do, args=(moment, moments, work, given))
    process.start()
    process.join(_SECONDS)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode in (0, -signal.SIGKILL), f"it ended with {process.exitcode}"
    killed = process.exitcode != 0
    process.close()
    return killed


def _do(moment: Moment, moments: Moments, work: Callable[..., object], given: tuple[Any, ...]) -> None:
    count = partial(_die_at, _Watch(), moment)
    if moments == "changes":
        _count_changes(count)
    else:
        sys.settrace(_tracer(count))
    work(*given)
    os._exit(0)


class _Watch:
    """Knows when a moment has come."""

    def __init__(self) -> None:
        self._counted = 0
        self._after = False

    def is_now(self, moment: Moment, change: str) -> bool:
        """Whether it is the one right before this change."""
        now = self._after or moment in (self._counted, change)
        self._counted += 1
        self._after = moment == f"after {change}"
        return now


def _die_at(watch: _Watch, moment: Moment, change: str) -> None:
    if watch.is_now(moment, change):
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(_SECONDS)


def _count_changes(count: Callable[[str], None]) -> None:
    sync, plain_open = os.fsync, io.open
    send, receive = socket.socket.send, socket.socket.recv

    def fsync(descriptor: int) -> None:
        count("fsync")
        sync(descriptor)

    def sent(self: socket.socket, *words: Any) -> int:
        count("send")
        return send(self, *words)

    def received(self: socket.socket, *words: Any) -> bytes:
        count("recv")
        return receive(self, *words)

    def opened(*given: Any, **more: Any) -> Any:
        file = plain_open(*given, **more)
        if file.writable():
            count("opened")
        return file

    os.fsync = fsync
    socket.socket.send, socket.socket.recv = sent, received  # type: ignore[method-assign]
    io.open = builtins.open = opened
    sys.addaudithook(lambda event, arguments: count(event) if _is_change(event, arguments) else None)


def _is_change(event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "open":
        return isinstance(arguments[2], int) and bool(arguments[2] & _WRITES) and arguments[0] != os.devnull
    return event in _CALLS


def _tracer(count: Callable[[str], None]) -> Callable[[FrameType, str, Any], Any]:
    seen: set[tuple[str, int]] = set()

    def line(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line" and (place := (frame.f_code.co_filename, frame.f_lineno)) not in seen:
            seen.add(place)
            count("line")
        return line

    def call(frame: FrameType, _event: str, _: Any) -> Any:
        return line if _OURS in frame.f_code.co_filename else None

    return call


def tree(folder: Path) -> set[str]:
    """Everything that lies below a folder."""
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*")}


# --- processes that others start -----------------------------------------------------------------------------------

_TOLD = "DIE_WHEN_TOLD"  # those of ours are taken out by `environment`
_SITE = """
import os, sys
if {told!r} in os.environ and not {{"serve", "worker", "coordinator"}}.isdisjoint(sys.orig_argv):
    sys.path.append({root!r})
    from tests.support.killing import die_when_told
    die_when_told(os.environ[{told!r}])
"""


class Armed:
    """Has one of a gateway's processes die while it serves. `environment` is for whoever starts the gateway."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        site = folder / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(_SITE.format(told=_TOLD, root=str(Path(__file__).parents[2])))
        self._file = folder / "told"
        path = os.pathsep.join(filter(None, (str(site), environment.get("PYTHONPATH"))))
        self.environment = {**environment, "PYTHONPATH": path, _TOLD: str(self._file)}

    def arm(self, moment: Moment) -> None:
        """From now on, the first process that comes to that moment dies there; what a process sends is no change."""
        self._file.write_text(json.dumps(moment))

    @property
    def fired(self) -> bool:
        """Whether one has died; if not, none will any more."""
        try:
            self._file.unlink()
        except FileNotFoundError:
            return True
        return False


def die_when_told(told: str) -> None:
    """Watch for that file, and for the moment that it says."""
    file, sync = Path(told), os.fsync
    watch = _Watch()
    inside = threading.local()

    def count(change: str) -> None:
        if getattr(inside, "counting", False) or not file.exists():
            return
        inside.counting = True
        try:
            if watch.is_now(json.loads(file.read_bytes()), change):
                file.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(_SECONDS)
        except FileNotFoundError:
            pass  # another was quicker
        finally:
            inside.counting = False

    def fsync(descriptor: int) -> None:
        count("fsync")
        sync(descriptor)

    os.fsync = fsync
    sys.addaudithook(lambda event, given: count(event) if _is_change(event, given) or event in _STARTS else None)
