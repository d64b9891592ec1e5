"""A server for the length of a measurement, where none runs: the same configuration, on a free port of this machine.

As a program (`python -m interlace.gateway.bench.own_server OPTIONS`) it is that server: it ends when its standard input
does, so that it never outlives who started it, whatever became of them.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from interlace.errors import InterlaceError
from interlace.gateway.asking import Where

START_SECONDS = 1800.0  # the first time, a checkpoint of gigabytes may have to be pulled
_DRAIN_SECONDS = 40.0
_SAYS = "Interlace listens on "


class NotStarted(InterlaceError):
    """The server of our own ended before it listened."""


@contextmanager
def own_server(where: Where) -> Iterator[str]:
    """Start it, give its URL once it listens, and drain it at the end. Raises `NotStarted`."""
    options = {"config": _text(where.config), "home": _text(where.home)}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "interlace.gateway.bench.own_server", json.dumps(options)],
            env={**where.env}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            start_new_session=True,  # ctrl-C is for us: we end it when we have told what was measured
        )  # fmt: skip
        try:
            url = _listening(process)
            if url is None:
                log.seek(0)
                said = log.read()[-3000:].decode(errors="replace").strip()
                raise NotStarted(f"No server runs, and one for the measurement could not be started:\n{said}")
            yield url
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.terminate()
            try:
                process.wait(_DRAIN_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _listening(process: subprocess.Popen[bytes]) -> str | None:
    """The URL of the line that it prints when it listens; None where it ends before, or takes far too long."""
    assert process.stdout is not None
    deadline, seen = time.monotonic() + START_SECONDS, b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while time.monotonic() < deadline:
            if not selector.select(1.0):
                continue
            data = os.read(process.stdout.fileno(), 4096)
            if not data:
                return None
            seen += data
            for line in seen.decode(errors="replace").split("\n")[:-1]:
                if line.startswith(_SAYS):
                    return line.removeprefix(_SAYS).partition(";")[0]
    return None


def _end_with_input() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Serve as `interlace serve --host 127.0.0.1 --port 0` does."""
    from interlace.gateway.commands import serve_command

    options = {name: None if value is None else Path(value) for name, value in json.loads(sys.argv[1]).items()}
    threading.Thread(target=_end_with_input, daemon=True).start()
    return serve_command(host="127.0.0.1", port=0, config=options["config"], home=options["home"])


if __name__ == "__main__":
    sys.exit(main())
