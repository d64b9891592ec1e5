"""An engine host: the process in which one model's core runs, so that its native code can crash alone.

Three kinds of threads, no event loop:

- the stepping thread (the main one) loads the core, then drives it and writes to the socket: `stepper.py`;
- the reader takes frames off the socket and ends the process at once when the gateway is gone, whatever the
  stepping thread is busy with;
- a few preparers tokenise and compile grammars, so that one slow grammar does not hold up the others; they count
  prompts too, and tell the count themselves.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import importlib
import logging
import os
import queue
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, runtime_checkable

from interlace.engines.core import Core
from interlace.engines.host.audience import Audience, listen
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
    Submit,
    ToHost,
    WireOutcome,
    decode_request,
    decode_to_host,
    encode_frame,
    wire_outcome,
)
from interlace.engines.host.stepper import CoreBroken, Job, Note, Prepared, Stepper, bug, step_frames
from interlace.engines.types import Usage
from interlace.errors import EngineFailed, InterlaceError

log = logging.getLogger(__name__)

PREPARERS = 4
SWITCH_INTERVAL_SECONDS = 0.0005  # the default 5 ms would let a preparer hold up a step by as much
RECEIVE_BYTES = 1 << 16

EXIT_GATEWAY_GONE = 0
EXIT_LOAD_FAILED = 69  # EX_UNAVAILABLE
EXIT_CORE_BROKEN = 70  # EX_SOFTWARE
EXIT_PROTOCOL = 76  # EX_PROTOCOL


# --- the process -----------------------------------------------------------------------------------------------


def main() -> None:
    """Serve the gateway at the other end of standard input until it goes away; never returns."""
    _die_with_gateway()
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the gateway, which drains
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    _no_core_dumps()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    _exit(serve(_take_standard_input()))


def _die_with_gateway() -> None:
    """Have the kernel end us when the gateway dies, be it in native code that holds the GIL (Linux only).

    Elsewhere, and before this call, the reader sees the end of the stream.
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _no_core_dumps() -> None:
    """A dump would write prompts and gigabytes of weights to disk, and hold up the restart while it does."""
    import resource  # POSIX only, as this process is

    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def _take_standard_input() -> socket.socket:
    """The socket we were given as standard input, moved where no library reads it and no child inherits it."""
    channel = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return channel


def _exit(status: int) -> None:
    """End now: no joining of threads that may be in native code for minutes."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


# --- serving ---------------------------------------------------------------------------------------------------


def serve(channel: socket.socket) -> int:
    """Load what the first frame says, then step until the end; returns the exit status."""
    send = Sender(channel)
    reader = Reader(channel, send)
    threading.Thread(target=reader.run, name="reader", daemon=True).start()
    try:
        setup = reader.setup.get()
        core = _load(setup, send)
        if core is None:
            return EXIT_LOAD_FAILED
        reader.core = core  # before "ready": a request comes only after it
        audience = Audience(send)
        if setup.listen:
            listen(Path(setup.listen), lambda one: _attached(one, reader, core, audience))
        send(encode_frame(Ready(core.capabilities(), core.health())))
        Stepper(core, reader.inbox, audience.tell).run()
    except CoreBroken:
        log.exception("the engine failed in a step; this process ends")
    except OSError:
        return EXIT_GATEWAY_GONE
    return EXIT_CORE_BROKEN


def _attached(channel: socket.socket, first: Reader, core: Core, audience: Audience) -> None:
    """Another process of the gateway: requests of its own, on the same core. Runs in a thread of its own."""
    member = audience.member(channel)
    reader = Reader(channel, member.send, gone=lambda _: None, shared=first)
    reader.core = core

    def attach(prefix: str) -> None:
        audience.join(prefix, member)
        member.send(encode_frame(Ready(core.capabilities(), core.health())))

    reader.attach = attach
    reader.opened = member.opened
    try:
        reader.run()
    finally:
        for id in audience.leave(member):
            reader.take(Cancel(id))


class Sender:
    """Writes whole frames, one at a time: preparers tell counts while the stepping thread is in a step."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._lock = threading.Lock()

    def __call__(self, frame: bytearray) -> None:
        """Send one frame; raises `OSError` when the gateway is gone."""
        with self._lock:
            self._channel.sendall(frame)


def _load(setup: Setup, send: Sender) -> Core | None:
    """The core, or None once the gateway has been told why there is none."""

    def progress(text: str) -> None:
        send(encode_frame(Progress(text)))

    try:
        core = find_core(setup.core)(setup.settings, Path(setup.home), progress)
    except InterlaceError as error:
        report = LoadFailed(Failure.of(error), hopeless=True)
    except Exception as error:
        log.exception("loading failed")
        report = LoadFailed(Failure.of(EngineFailed(f"{type(error).__name__}: {error}")), hopeless=False)
    else:
        gc.collect()
        gc.freeze()  # vocabularies and graphs stay for good: no need to walk them at every collection
        return core
    send(encode_frame(report))
    return None


def find_core(spec: str) -> Callable[..., Core]:
    """The factory that "package.module:function" names; the spec is our own code's or a setting's, never a caller's."""
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", spec):
        raise ValueError(f"{spec!r} does not name a core; write package.module:function")
    module, function = spec.split(":")
    factory: Callable[..., Core] = getattr(importlib.import_module(module), function)
    return factory


def _nobody_attaches(_: str) -> None:
    raise FrameError("the gateway that started this process does not attach to it")


@runtime_checkable
class TakesAdapters(Protocol):
    """A core whose requests may name adapters. Called from the reading thread, while `step` runs."""

    def register_adapter(self, name: str, folder: Path) -> None:
        """From now on the adapter `name` is the one in `folder`."""
        ...

    def remove_adapter(self, name: str) -> None:
        """From now on there is none of that name; requests keep the one they began with."""
        ...


class Reader:
    """A reading thread, and the preparers it feeds. `core` is set before the first request can come."""

    core: Core

    def __init__(
        self,
        channel: socket.socket,
        send: Callable[[bytearray], object],
        gone: Callable[[int], None] = _exit,
        shared: Reader | None = None,
    ) -> None:
        self._channel = channel
        self._send = send
        self._gone = gone
        self.attach: Callable[[str], None] = _nobody_attaches
        self.opened: Callable[[str], None] = lambda _: None  # hears of every request
        self.setup: queue.SimpleQueue[Setup] = queue.SimpleQueue()
        self.inbox: queue.SimpleQueue[Note] = shared.inbox if shared else queue.SimpleQueue()
        # Jobs that a cancel can still overtake. Only this thread adds and looks up; preparers take theirs out when
        # done. A dict's pop is atomic, and whoever loses the race finds the other's word: a job taken out before the
        # cancel came is in the inbox before the cancel is.
        self._jobs: dict[str, Job] = {}
        self.preparers: ThreadPoolExecutor = (
            shared.preparers if shared else ThreadPoolExecutor(PREPARERS, thread_name_prefix="preparer")
        )

    def run(self) -> None:
        """Read until the gateway goes away, then end the process; also for bytes that are no frame."""
        frames = FrameReader()
        try:
            while piece := self._channel.recv(RECEIVE_BYTES):
                for body in frames.feed(piece):
                    self.take(decode_to_host(body))
        except FrameError:
            log.exception("the gateway does not speak our protocol; this process ends")
            self._gone(EXIT_PROTOCOL)
        except OSError:
            log.exception("the connection to the gateway failed; this process ends")
        self._gone(EXIT_GATEWAY_GONE)

    def take(self, message: ToHost) -> None:
        """Act on one message of the gateway."""
        if isinstance(message, Submit):
            if not message.count:
                self.opened(message.id)
            job = self._jobs[message.id] = Job(message.id)
            self.preparers.submit(self._prepare, job, message)
        elif isinstance(message, Cancel):
            if job_on_its_way := self._jobs.pop(message.id, None):
                job_on_its_way.cancelled = True
            self.inbox.put(message)  # for a job that is past the preparers
        elif isinstance(message, Attach):
            self.attach(message.prefix)
        elif isinstance(message, Adapter):
            self._take_adapter(message)
        else:
            self.setup.put(message)

    def _take_adapter(self, message: Adapter) -> None:
        if not isinstance(self.core, TakesAdapters):
            log.error("this model takes no adapters; %s is not served", message.name)
        elif message.folder:
            self.core.register_adapter(message.name, Path(message.folder))
        else:
            self.core.remove_adapter(message.name)

    def _prepare(self, job: Job, message: Submit) -> None:
        if job.cancelled:
            return
        if message.count:
            self._tell_count(message)
            self._jobs.pop(job.id, None)
        else:
            prepared = self._prepared(job, message)
            self.inbox.put(prepared)
            self._jobs.pop(job.id, None)

    def _tell_count(self, message: Submit) -> None:
        """Count and answer from this thread: the stepping thread may be in a step for a long while."""
        outcome: WireOutcome
        try:
            outcome = Usage(self.core.count(decode_request(message)), 0)
        except InterlaceError as error:
            outcome = wire_outcome(error)
        except Exception as error:  # noqa: BLE001 - as in `_prepared`
            outcome = wire_outcome(bug("counting", error))
        try:
            for frame in step_frames(Step([(message.id, outcome)])):
                self._send(frame)
        except OSError:
            log.debug("the gateway went away before it was told a count")  # the reader ends the process

    def _prepared(self, job: Job, message: Submit) -> Prepared:
        try:
            return Prepared(job, self.core.prepare(decode_request(message)))
        except InterlaceError as error:
            return Prepared(job, error=error)
        except Exception as error:  # noqa: BLE001 - a bug of the core, or of a library under it: this request's alone
            return Prepared(job, error=bug("preparing", error))
