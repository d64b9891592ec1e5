"""What the verbs of the gateway do before and beside serving: bring checkpoints, and say how to ask."""

from __future__ import annotations

import subprocess
from importlib import import_module
from pathlib import Path

import pytest

from interlace.config import ModelSettings, Settings
from interlace.gateway.commands import _pull_missing, config_check_command
from interlace.gateway.serve import _instructions
from interlace.models import SuggestedSampling, resolve
from interlace.models.catalogue import CatalogueEntry, CatalogueSource
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tiny import tiny_llama_gguf


def test_a_model_pulled_just_now_is_served_as_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first start serves it with what its manifest says, suggested sampling included, not as a bare file."""
    file = tiny_llama_gguf(tmp_path / "origin.gguf")
    suggested = SuggestedSampling(temperature=0.2, top_p=0.9)
    entry = CatalogueEntry("tiny", "llama", "MIT", (CatalogueSource(str(file), 0, {}),), suggested)
    monkeypatch.setattr(import_module("interlace.models.pulling"), "catalogue", lambda: {"tiny": entry})
    settings = Settings(home=tmp_path / "home", models=(ModelSettings("m", "tiny"),))
    first, second = _pull_missing(settings), _pull_missing(settings)
    assert first == second
    assert resolve(first.models[0].checkpoint, settings.home).manifest.sampling == suggested


@pytest.mark.parametrize("folder", ["plain", "with space", "it's $HOME"])
def test_the_line_to_paste_carries_the_key_wherever_it_is_kept(
    tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pasted into a shell, the header has the key, whatever the home folder is called."""
    monkeypatch.delenv("INTERLACE_API_KEY", raising=False)
    home = tmp_path / folder
    home.mkdir()
    (home / "key").write_text("sk-il-secret\n")
    said = _instructions(Settings(home=home), "http://127.0.0.1:1", {"m": ScriptedEngine()})
    line = next(line for line in said.splitlines() if line.startswith("curl "))
    pasted = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {line.removeprefix('curl ')}"], capture_output=True, text=True, check=True
    )
    assert "Authorization: Bearer sk-il-secret\n" in pasted.stdout
    assert pasted.stderr == ""


def test_config_check_finds_the_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint that `serve` could neither find nor pull is a mistake with a line, not "good"."""
    tiny_llama_gguf(tmp_path / "here.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    file = tmp_path / "interlace.yaml"
    good = ("./here.gguf", "smollm2-135m-instruct", "hf:org/name")
    bad = {"./not-here": "does not exist", "./broken.gguf": "sound GGUF", "nope": "catalogue", "hf:name": "Hub source"}
    checkpoints = [*good, *bad]
    lines = [f"  - name: m{number}\n    checkpoint: '{each}'\n" for number, each in enumerate(checkpoints)]
    env = {"INTERLACE_HOME": str(tmp_path)}
    file.write_text("models:\n" + "".join(lines))
    assert config_check_command(file, env=env) == 1
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == len(bad)
    for number, (line, words) in enumerate(zip(shown, bad.values(), strict=True), len(good)):
        assert line.startswith(f"{file}:{2 * number + 3}: models[{number}].checkpoint: ")
        assert words in line
        assert "Name one of the store" in line
    file.write_text("models:\n" + "".join(lines[: len(good)]))
    assert config_check_command(file, env=env) == 0
