"""`interlace pull` in processes of their own, against a loopback server that is both the Hub and the package index."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.file_server import FileServer

PULL = """
import sys
from pathlib import Path
from interlace.models.commands import pull_command
sys.exit(pull_command(sys.argv[1], Path(sys.argv[2]), name=sys.argv[3]))
"""


def environment(server: FileServer) -> dict[str, str]:
    """A process's environment in which the Hub and the package index are `server`, and nothing else is configured."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "HF_"))}
    return kept | {
        "HF_ENDPOINT": server.url,
        "PIP_INDEX_URL": f"{server.url}/simple/",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_CACHE_DIR": "1",
    }


def start_pull(server: FileServer, what: str, home: Path, name: str = "tiny") -> subprocess.Popen[str]:
    """`interlace pull` in a process of its own."""
    command = [sys.executable, "-c", PULL, what, str(home), name]
    return subprocess.Popen(command, env=environment(server), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code and all it said."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out + err


def run_pull(server: FileServer, what: str, home: Path, name: str = "tiny") -> tuple[int, str]:
    """Start and finish."""
    return finish(start_pull(server, what, home, name))
