"""The tutorial over five providers is true: its configuration is served, its blocks run, what it shows is what comes.

Readers follow it with keys of their own. Here loopback servers stand in for the providers; nothing but their addresses
is changed.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.serving import COMMAND, environment, free_port, serving
from tests.support.standing_in import StandIns, standing_in

PAGE = Path(__file__).parents[2] / "docs/tutorial/five-providers.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS: list[tuple[str, str]] = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
SERVE = next(i for i, (language, text) in enumerate(BLOCKS) if language == "console" and "interlace serve" in text)


def _script(blocks: list[tuple[str, str]], there: StandIns, folder: Path, url: str) -> str:
    """The blocks as one script, which marks where the output of each begins."""
    script = ["set -euo pipefail"]
    for number, (language, written) in enumerate(blocks):
        text = there.readdressed(written).replace("127.0.0.1:8080", url.removeprefix("http://"))
        text = text.replace(".venv/bin/interlace", COMMAND[0]).replace(".venv/bin/python", sys.executable)
        if language == "python":
            (folder / f"block{number}.py").write_text(text)
        command = {"bash": text, "python": f"{sys.executable} block{number}.py"}
        if language in command:
            script += [f"echo '--- block {number}'", command[language]]
    return "\n".join(script)


def _run(blocks: list[tuple[str, str]], there: StandIns, folder: Path, home: Path, url: str) -> dict[int, str]:
    """What each block printed, by its number."""
    command = ["bash", "-c", _script(blocks, there, folder, url)]
    env = {**environment(home), "INTERLACE_PORT": url.rpartition(":")[2]}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=200, cwd=folder)
    log = home / "serve.log"
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{log.read_text() if log.exists() else ''}"
    parts = re.split(r"--- block (\d+)\n", done.stdout)[1:]
    return {int(number): there.named(text) for number, text in zip(parts[::2], parts[1::2], strict=True)}


def _masked(text: str) -> list[str]:
    """The words of each line, numbers left open: time, tokens and money are the reader's own."""
    return [" ".join(re.sub(r"\d[\d.,]*", "N", line).split()) for line in text.strip().splitlines()]


def test_a_reader_with_keys_sees_what_the_page_shows(
    smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every block runs in its order, from the configuration to the auditor, and each prints what stands below it."""
    home, folder = tmp_path / "home", tmp_path / "folder"
    home.mkdir()
    folder.mkdir()
    pull = [*COMMAND, "pull", str(smollm2_gguf), "--name", "smollm2-135m-instruct"]
    subprocess.run(pull, check=True, env=environment(home), timeout=120)
    with standing_in(tmp_path) as there:
        for name, value in there.environ.items():
            monkeypatch.setenv(name, value)
        config = folder / "interlace.yaml"
        config.write_text(there.readdressed(next(text for language, text in BLOCKS if language == "yaml")))
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        printed = _run(BLOCKS[:SERVE], there, folder, home, url)
        with serving(home, port, "--config", str(config)):
            later = _run(BLOCKS[SERVE:], there, folder, home, url)
    printed |= {SERVE + number: text for number, text in later.items()}
    shown = {number - 1: text for number, (language, text) in enumerate(BLOCKS) if language == "text"}
    assert len(shown) > 12
    wrong = [number for number, text in shown.items() if _masked(printed[number]) != _masked(text)]
    assert not wrong, "\n".join(f"{BLOCKS[number][1]}\nprints\n{printed[number]}" for number in wrong)
