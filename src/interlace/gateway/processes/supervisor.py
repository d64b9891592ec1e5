"""The supervisor: binds the port, starts coordinator and workers, starts again what dies, and ends them in order.

It reads no request and opens no database, so there is little that could end it. Every child has the end of a pipe as
standard input: when the supervisor is gone, however it went, they read the end of it, drain and leave.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from interlace.config import Settings
from interlace.errors import ConfigError
from interlace.gateway.logs import set_up_logs
from interlace.gateway.notify import STOPPING, notify
from interlace.gateway.processes.counters import CounterFiles
from interlace.gateway.processes.places import RunFolder
from interlace.gateway.processes.renewing import HELD, become_new, held_sockets, why_not
from interlace.gateway.processes.rolling import Replaceable, Rolling
from interlace.gateway.serve import bind
from interlace.models import try_lock

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 5.0
HEALTHY_SECONDS = 10.0  # a child that lived so long is started again at once
LOOK_SECONDS = 0.05
BACKLOG = 2048  # connections that wait to be accepted, of each worker
GRACE_SECONDS = 15.0  # beyond the draining time, before a child is killed
EXIT_CONFIG = 2
RENEW = -1  # no exit code: the version that is installed now takes over


@dataclass
class Child:
    """A process that is started again when it dies. `words`: its arguments."""

    words: list[str]
    env: Mapping[str, str]
    pipe: int  # its standard input: ends when we do
    pass_fds: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    deaths: int = 0  # in a row
    not_before: float = 0.0

    def start(self, **more: str) -> None:
        """Start it; `more` goes into its environment."""
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "interlace.gateway.processes", *self.words],
            stdin=self.pipe,
            env={**self.env, **more},
            pass_fds=self.pass_fds,
            start_new_session=True,  # Ctrl-C in the terminal is for the supervisor, which ends them in order
        )

    def successor(self) -> Child:
        """Another for the same socket, under a name of its own: both may live for a while."""
        role, name, *rest = self.words
        name = name.removesuffix("b") if name.endswith("b") else f"{name}b"
        return Child([role, name, *rest], self.env, self.pipe, self.pass_fds)

    def start_telling(self, address: str) -> None:
        """Start it, to tell that address when it serves."""
        self.start(NOTIFY_SOCKET=address)

    def lives(self) -> bool:
        """Whether its process is there."""
        return self.process is not None and self.process.poll() is None

    def has_died(self) -> int | None:
        """Its exit status, once; None while it runs or is not to be started yet."""
        if self.process is None or (status := self.process.poll()) is None:
            return None
        self.process = None
        now = time.monotonic()
        self.deaths = 1 if now - self.started > HEALTHY_SECONDS else self.deaths + 1
        self.not_before = now + min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (self.deaths - 1))
        return status

    def signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.process is not None and self.lives():
            self.process.send_signal(number)


@dataclass
class Supervisor:
    """All children of one `interlace serve --workers N`."""

    settings: Settings
    coordinator: Child
    workers: list[Child]
    config: str | None = None  # the file that is served by
    stopping: int = 0  # signals that asked for the end
    renewals: int = 0  # signals that asked for the version that is installed now
    rolls: int = 0  # signals that asked for new workers
    _rolling: Rolling | None = None

    def run(self) -> int:
        """Until a signal; the exit code, or `RENEW`."""
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self._stop)
        signal.signal(signal.SIGHUP, self._hang_up)
        signal.signal(signal.SIGUSR1, self._roll)
        signal.signal(signal.SIGUSR2, self._renew)
        try:
            while not self.stopping:
                self._start_what_is_down()
                if self._look() == EXIT_CONFIG:
                    self._end()
                    return EXIT_CONFIG
                if self.renewals and self._may_renew():
                    break
                self._look_at_rolling()
                time.sleep(LOOK_SECONDS)
            self._end()
        finally:
            for child in (*self._every_worker(), self.coordinator):
                child.signal(signal.SIGKILL)
        return 0 if self.stopping else RENEW

    def _stop(self, *_: Any) -> None:
        self.stopping += 1
        if self.stopping == 1:
            notify(STOPPING)

    def _renew(self, *_: Any) -> None:
        self.renewals += 1

    def _roll(self, *_: Any) -> None:
        self.rolls += 1

    def _look_at_rolling(self) -> None:
        if self.rolls and self._rolling is None and sys.platform == "linux":
            self.rolls = 0
            self._rolling = Rolling(cast("list[Replaceable]", self.workers), self._drain_seconds)
        if self._rolling is not None and not self._rolling.look():
            self._rolling = None

    def _every_worker(self) -> list[Child]:
        beside = self._rolling.children() if self._rolling else ()
        return [*self.workers, *cast("Iterable[Child]", beside)]

    @property
    def _drain_seconds(self) -> float:
        return self.settings.drain_seconds + GRACE_SECONDS

    def _may_renew(self) -> bool:
        self.renewals = 0
        if why := why_not(self.config):
            log.error("the version that is installed now cannot take over", extra={"fields": {"why": why}})
        else:
            log.info("the version that is installed now takes over")
        return why is None

    def _hang_up(self, *_: Any) -> None:
        self.coordinator.signal(signal.SIGHUP)

    def _start_what_is_down(self) -> None:
        for child in (self.coordinator, *self.workers):
            if child.process is None and time.monotonic() >= child.not_before:
                child.start()

    def _look(self) -> int | None:
        """Notice the dead; `EXIT_CONFIG` where the coordinator cannot start at all."""
        for child in (self.coordinator, *self.workers):
            status = child.has_died()
            if status is None:
                continue
            if child is self.coordinator and status == EXIT_CONFIG and child.deaths == 1:
                return EXIT_CONFIG
            fields = {"process": " ".join(child.words[:2]), "status": status}
            log.error("a process has ended and is started again", extra={"fields": fields})
        return None

    def _end(self) -> None:
        """Workers drain first: the coordinator records what they finish. A second signal, and nobody waits."""
        self._end_some(self._every_worker(), self._drain_seconds)
        self._end_some([self.coordinator], GRACE_SECONDS)

    def _end_some(self, children: list[Child], seconds: float) -> None:
        until = time.monotonic() + seconds
        for child in children:
            child.signal(signal.SIGTERM)
        while any(child.lives() for child in children):
            if time.monotonic() > until or self.stopping > 1:
                for child in children:
                    child.signal(signal.SIGKILL)
            time.sleep(LOOK_SECONDS)


def serve_many(settings: Settings, options: Mapping[str, Any], env: Mapping[str, str]) -> int:
    """Serve with `settings.workers` processes until a signal; the exit code. `options`: how children find the same
    configuration (`commands.Options`).

    Raises `ConfigError` when the address is taken, `OSError` when the home folder cannot be written.
    """
    sockets = bind_many(settings.host, settings.port, settings.workers, held_sockets(settings.host, settings.port))
    env = {name: value for name, value in env.items() if name != HELD}
    set_up_logs(settings.log)
    run = RunFolder.of(settings.home)
    run.make()
    counters = CounterFiles.make(run.path, settings.workers)
    said = json.dumps({**options, "address": list(sockets[0].getsockname()[:2]), "counters": counters.word})
    pipe, _ = os.pipe()  # the other end closes when we are gone
    coordinator = Child(["coordinator", said], env, pipe, counters.descriptors)
    workers = [
        Child(
            ["worker", f"w{number}", str(run.path), str(bound.fileno()), counters.word],
            env,
            pipe,
            (bound.fileno(), *counters.descriptors),
        )
        for number, bound in enumerate(sockets, 1)
    ]
    code = Supervisor(settings, coordinator, workers, options["config"]).run()
    if code == RENEW:
        become_new(sockets)
    return code


def bind_many(host: str, port: int, count: int, held: list[socket.socket]) -> list[socket.socket]:
    """A listening socket for each worker, all on one port, of which some may be `held`; raises `ConfigError` when it is
    taken.

    On Linux each has a queue of its own, among which the kernel spreads connections: one that all share goes to whoever
    wakes first, and that one takes a whole burst. They are the supervisor's, so that what stands in the queue of a
    worker that died waits for the next one. Elsewhere the kernel does not spread, and all share one.
    """
    first = held[0] if held else bind(host, port)  # without sharing: a port that anybody else has is taken
    if sys.platform != "linux":
        first.listen(BACKLOG)
        return [first] * count
    family, address = first.family, first.getsockname()
    if not held:
        first.close()
    sockets = held[:count]
    for unused in held[count:]:
        unused.close()
    for _ in range(count - len(sockets)):
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            bound.bind(address)
            bound.listen(BACKLOG)
        except OSError as error:
            raise ConfigError(
                f"Cannot listen on {host} port {port}: {error.strerror}. Stop what uses it, or choose another --port."
            ) from error
        sockets.append(bound)
    return sockets


def hold_worker_lock(run: RunFolder, worker: str) -> object:
    """The lock that says that this worker lives; kept for the life of the process."""
    while (lock := try_lock(run.lock(worker))) is None:
        time.sleep(LOOK_SECONDS)  # the one before us is not gone yet
    return lock


def listening(fileno: int) -> socket.socket:
    """The socket that the supervisor has bound."""
    bound = socket.socket(fileno=fileno)
    bound.setblocking(False)
    return bound


def folder_of(text: str) -> RunFolder:
    """The run folder that the supervisor names."""
    return RunFolder(Path(text))
