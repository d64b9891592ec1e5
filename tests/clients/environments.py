"""Environments for clients: each from a file of pins, made once into `.cache/clients`, shared by workers and runs."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

HERE = Path(__file__).parent
FOLDER = Path(os.environ.get("INTERLACE_CLIENTS_HOME") or HERE.parents[1] / ".cache" / "clients")
INSTALL_SECONDS = 900  # pip asks again by itself meanwhile


def python_of(name: str) -> Path:
    """The Python in which all of `requirements/NAME.txt` is installed, and nothing of ours."""
    pins = HERE / "requirements" / f"{name}.txt"
    made_from = f"{sys.version} {pins.read_text()}"
    target = FOLDER / f"{name}-{hashlib.sha256(made_from.encode()).hexdigest()[:12]}"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(FOLDER / f"{name}.lock"):
        if not (target / "complete").exists():
            _make(target, pins)
    return target / "bin" / "python"


def _make(target: Path, pins: Path) -> None:
    """An environment knows its own path, so it is made in place, and marked once it is whole."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(target)], check=True, timeout=120)
    command = [
        str(target / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--retries", "10", "--timeout", "60", "-r", str(pins),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS)
    if done.returncode:
        shutil.rmtree(target)
        pytest.fail(f"the package index did not give what {pins} pins; once it answers, run again:\n{done.stderr}")
    (target / "complete").touch()
