"""A `vllm` command that is none, and engines over it."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from interlace.config import ModelSettings
from tests.support import vllm_stand_in
from tests.support.tiny import tiny_llama_safetensors
from tests.support.vllms import Make, Record


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with safetensors."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_llama_safetensors(folder)
    return folder


@pytest.fixture
def make(tmp_path: Path, checkpoint: Path) -> Make:
    """Settings of a model whose `vllm` is the stand-in."""
    command = tmp_path / "vllm"
    command.write_text(f"#!{sys.executable} -I\n{Path(vllm_stand_in.__file__).read_text()}")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)

    def settings(*arguments: str, **fields: Any) -> ModelSettings:
        more = {"model": str(checkpoint), "executable": str(command), "max_loras": 2, "start_seconds": 20.0} | fields
        return ModelSettings("big", engine="vllm", arguments=(f"--record={tmp_path / 'record'}", *arguments), **more)

    return settings


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """What the stand-in has noted."""
    return lambda: json.loads((tmp_path / "record").read_text())


@pytest.fixture(autouse=True)
def a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something in our environment that is nobody else's."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-nobodys")
