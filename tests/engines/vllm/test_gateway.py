"""`interlace serve` and `interlace config check` with a model that vLLM computes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from interlace.config import ModelSettings, load_settings
from interlace.engines import HostedEngine, RemoteEngine
from interlace.engines.types import Delta
from interlace.errors import ConfigError, InvalidRequest
from interlace.gateway.commands import vllm_faults
from interlace.gateway.serve import build_engine
from tests.support.serving import free_port, serving
from tests.support.vllms import Make, Record, chat, sound_adapter

COMMAND = (sys.executable, "-m", "interlace")


def _config(home: Path, model: ModelSettings, *, adapter: bool = True, workers: int = 1) -> Path:
    folder = sound_adapter(home / "adapter")
    lines = [
        f"workers: {workers}",
        "models:",
        "  - name: big",
        "    engine: vllm",
        f"    executable: {model.executable}",
        f"    model: {model.model}",
        f"    arguments: [{', '.join(model.arguments)}]",
        f"    max_loras: {model.max_loras}",
        *([f"    adapters: [{{name: mine, folder: {folder}}}]"] if adapter else []),
        "prices:",
        "  - {model: big, since: 2026-01-01, usd_per_million: {prompt: 1, completion: 2}}",
        "  - {model: 'big:mine', since: 2026-01-01, usd_per_million: {prompt: 1, completion: 2}}",
    ]
    path = home / "interlace.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def _ask(url: str, key: str, model: str) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
    headers = {"authorization": f"Bearer {key}"}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, trust_env=False, timeout=60)
    assert answer.status_code == httpx.codes.OK, answer.text
    told: dict[str, Any] = answer.json()
    return told


@pytest.mark.parametrize("workers", [1, 2])
def test_it_is_served_and_billed_like_any_model(make: Make, record: Record, tmp_path: Path, workers: int):
    """By its name and by its adapter's, with one process and with several: vLLM's own count is what is billed, each
    request reaches the model it named, and nothing is left behind."""
    config = _config(tmp_path, make(), workers=workers)
    with serving(tmp_path, free_port(), "--config", str(config), command=COMMAND) as there:
        told = _ask(there.url, there.key, "big")
        assert told["choices"][0]["message"]["content"] == "one two three"
        assert (told["usage"]["prompt_tokens"], told["usage"]["completion_tokens"]) == (5, 3)
        assert _ask(there.url, there.key, "big:mine")["model"] == "big:mine"
        asked = [one["model"] for one in record()["asked"] if "messages" in one]
        assert asked[0] == make().model
        assert asked[1].startswith("mine#")
        log = there.log.read_text()
        assert record()["env"]["VLLM_API_KEY"] not in log
    pid = record()["pid"]
    assert not Path(f"/proc/{pid}").exists() or "vllm" not in Path(f"/proc/{pid}/cmdline").read_text()


def test_check_names_the_line_and_the_mend(make: Make, tmp_path: Path):
    """Before anything is started: a program that is not there, an option that is not the operator's to give."""
    config = _config(tmp_path, make("--trust-remote-code"))
    done = subprocess.run(
        [*COMMAND, "config", "check", str(config)],
        env={**os.environ, "INTERLACE_HOME": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "--trust-remote-code" in done.stdout + done.stderr
    assert f"{config}:5" in done.stdout + done.stderr


async def test_an_adapter_never_falls_back_to_the_base(make: Make, tmp_path: Path):
    """A vLLM elsewhere that the configuration gives adapters would answer for each as the base alone."""
    far = ModelSettings("far", engine="vllm", model="m", base_url="http://127.0.0.1:9/v1")
    engine = build_engine(far, tmp_path, {})
    assert isinstance(engine, RemoteEngine)
    with pytest.raises(InvalidRequest, match="adapters"):
        assert [e async for e in engine.generate(chat(adapter="mine")) if isinstance(e, Delta)]
    settings = load_settings(_config(tmp_path, make()), {}, {"home": str(tmp_path)}, need_keys=False)
    (here,) = settings.models
    assert isinstance(build_engine(here, tmp_path, {}), HostedEngine)
    assert list(vllm_faults(settings)) == []
    with pytest.raises(ConfigError, match="max_loras"):
        build_engine(make(max_loras=0, adapters=here.adapters), tmp_path, {})
