"""The command `interlace` as a process: exit codes, streams, and errors as one clear line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from interlace import __version__
from tests.support.serving import COMMAND, environment


def _run(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], env=environment(home), cwd=home, capture_output=True, text=True, check=False, timeout=60
    )


def test_version(tmp_path: Path) -> None:
    """The version is the package's, on standard output, however the command is started."""
    done = _run(tmp_path, "--version")
    assert (done.returncode, done.stdout) == (0, f"interlace {__version__}\n")
    module = subprocess.run(
        [sys.executable, "-m", "interlace", "--version"], capture_output=True, check=True, text=True
    )
    assert module.stdout == done.stdout


def test_no_verb_shows_the_help(tmp_path: Path) -> None:
    """`interlace` alone says what there is."""
    done = _run(tmp_path)
    assert "interlace serve" in done.stdout + done.stderr
    assert done.returncode in (0, 2)


@pytest.mark.parametrize("words", [("sing",), ("serve", "--port", "many"), ("pull",)], ids=" ".join)
def test_wrong_use_is_exit_code_two(tmp_path: Path, words: tuple[str, ...]) -> None:
    """An unknown verb, a bad value or a missing word is told without a stack trace."""
    done = _run(tmp_path, *words)
    assert done.returncode == 2
    assert "Error" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words", [("pull", "./nothing-here.gguf"), ("checkpoints", "show", "nope"), ("checkpoints", "rm", "nope")],
    ids=" ".join,
)  # fmt: skip
def test_what_cannot_be_done_is_one_line_and_exit_code_one(tmp_path: Path, words: tuple[str, ...]) -> None:
    """A failure names what failed, on standard error, and prints nothing else."""
    done = _run(tmp_path, *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert words[-1].removeprefix("./") in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_configuration_stops_serve_with_line_and_mend(tmp_path: Path) -> None:
    """`serve` with a broken file starts nothing: exit code 2, and the line of the mistake."""
    (tmp_path / "interlace.yaml").write_text("port: 8080\nhots: 0.0.0.0\n")
    done = _run(tmp_path, "serve")
    assert done.returncode == 2
    assert "interlace.yaml:2" in done.stderr
    assert "host" in done.stderr
    checked = _run(tmp_path, "config", "check", "interlace.yaml")
    assert checked.returncode == 1
    assert "interlace.yaml:2" in checked.stdout


def test_lists_are_json_for_programs(tmp_path: Path) -> None:
    """`--json` prints JSON and nothing else, with an empty store and with no server as well."""
    assert json.loads(_run(tmp_path, "checkpoints", "list", "--json").stdout) == []
    models = _run(tmp_path, "models", "--json")
    assert models.returncode == 0
    assert [model["id"] for model in json.loads(models.stdout)] == ["smollm2-135m-instruct"]


def test_home_option_beats_the_environment(tmp_path: Path) -> None:
    """`--home` names another store than `INTERLACE_HOME`."""
    other = tmp_path / "other"
    done = _run(tmp_path, "checkpoints", "list", "--home", str(other))
    assert str(other) in done.stderr
