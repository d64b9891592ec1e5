"""Start the real command `interlace serve` on loopback, wait until it is ready, and stop it again."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

COMMAND = (str(Path(sys.executable).with_name("interlace")),)


@dataclass(frozen=True)
class Serving:
    """A running server: where it listens, its home, and what was printed so far."""

    url: str
    home: Path
    log: Path

    @property
    def key(self) -> str:
        """The first key, as the server keeps it."""
        return (self.home / "key").read_text().strip()


_FIRST_PORT, _FEW_PORTS = 10_240, 1_000
_OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")
_random = random.SystemRandom()  # the shared one is seeded by tests that draw


def free_port() -> int:
    """A TCP port of loopback that nothing listened on a moment ago; where the system says which ports outgoing
    connections are given, none of those: a server that is away for a while then finds its port free again."""
    last = int(_OUTGOING.read_text().split()[0]) if _OUTGOING.exists() else 0
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", _random.randrange(_FIRST_PORT, last) if last - _FIRST_PORT > _FEW_PORTS else 0))
            return int(probe.getsockname()[1])


def environment(home: Path) -> dict[str, str]:
    """This process' environment without settings of its own, for `home`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("INTERLACE_")}
    return {**clean, "INTERLACE_HOME": str(home)}


@contextmanager
def serving(home: Path, port: int, *arguments: str, command: tuple[str, ...] = COMMAND) -> Iterator[Serving]:
    """`interlace serve` with this home, ready to answer; ended by SIGTERM, after which it must exit with 0."""
    log = home / "serve.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*command, "serve", "--port", str(port), *arguments],
            env=environment(home), cwd=home, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
        )  # fmt: skip
    there = Serving(f"http://127.0.0.1:{port}", home, log)
    try:
        _wait_until_ready(there, process)
        yield there
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
        assert code == 0, f"exit code {code} after SIGTERM:\n{log.read_text()}"
    finally:
        process.kill()
        process.wait()


def _wait_until_ready(there: Serving, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended:\n{there.log.read_text()}"
        try:
            if httpx.get(f"{there.url}/readyz", trust_env=False).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.1)
    raise AssertionError(f"not ready after two minutes:\n{there.log.read_text()}")
