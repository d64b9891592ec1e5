"""What a person sees of a pull."""

from __future__ import annotations

import os
import pty
import struct
import subprocess
import sys

import pytest

fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")

PROGRAM = """
from interlace.models.bars import progress_for_people
with progress_for_people() as progress:
    progress.begin("Unpacking a file [with] a name that is much longer than a line.gguf", 2_000_000_000)
    progress.advance(1_999_000_000)
    progress.end()
"""


def test_a_bar_is_one_line_of_a_terminal_of_80_columns() -> None:
    """A wrapped bar cannot be redrawn in place: name, bar, size, speed and time must fit side by side."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
    environment.pop("COLUMNS", None)
    subprocess.run([sys.executable, "-c", PROGRAM], stderr=writer, check=True, timeout=60, env=environment)
    os.close(writer)
    seen = b""
    try:
        while chunk := os.read(reader, 65536):
            seen += chunk
    except OSError:  # how Linux says that the writing end is closed
        pass
    finally:
        os.close(reader)
    frames = [each for each in seen.decode().replace("\r", "\n").split("\n") if "Unpacking a file [with]" in each]
    assert "2.0/2.0 GB" in frames[-1]
    assert all("/2.0 GB" in frame for frame in frames)
