"""The command `interlace` as a process: exit codes, streams, and errors as one clear line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from interlace import __version__
from interlace.models import pull
from tests.support.serving import COMMAND, environment, free_port
from tests.support.tiny import tiny_llama_gguf


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


def test_home_is_where_serve_would_have_it(tmp_path: Path) -> None:
    """`home:` of ./interlace.yaml holds for the store too, and the environment still beats it."""
    (tmp_path / "interlace.yaml").write_text("home: data\n")
    clean = environment(tmp_path)
    del clean["INTERLACE_HOME"]
    command = [*COMMAND, "checkpoints", "list"]
    done = subprocess.run(command, env=clean, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert str(tmp_path / "data") in done.stderr
    assert str(tmp_path / "data") not in _run(tmp_path, "checkpoints", "list").stderr


def test_one_broken_manifest_does_not_hide_the_others(tmp_path: Path) -> None:
    """The sound ones are listed, the broken one is told with a way out that works, and the exit code says so."""
    for name in ("broken", "sound"):
        pull(str(tiny_llama_gguf(tmp_path / f"{name}.gguf")), tmp_path)
    (tmp_path / "checkpoints/broken/manifest.json").write_bytes(b'{"\xff')
    listed = _run(tmp_path, "checkpoints", "list")
    assert listed.returncode == 1
    assert listed.stdout.splitlines()[1].startswith("sound")
    assert "interlace checkpoints rm broken" in listed.stderr
    verified = _run(tmp_path, "checkpoints", "verify", "--json")
    assert verified.returncode == 1
    assert {each["name"]: each["ok"] for each in json.loads(verified.stdout)} == {"sound": True, "broken": False}
    assert _run(tmp_path, "checkpoints", "rm", "broken").returncode == 0
    assert _run(tmp_path, "checkpoints", "list").returncode == 0


def test_show_says_the_suggested_sampling_in_words(tmp_path: Path) -> None:
    """No Python types in what a person reads."""
    pull(str(tiny_llama_gguf(tmp_path / "tiny.gguf")), tmp_path)
    shown = _run(tmp_path, "checkpoints", "show", "tiny").stdout
    assert "sampling        not stated\n" in shown
    manifest = tmp_path / "checkpoints/tiny/manifest.json"
    manifest.write_text(manifest.read_text().replace('"sampling": {}', '"sampling": {"temperature": 0.2}'))
    assert "sampling        temperature 0.2\n" in _run(tmp_path, "checkpoints", "show", "tiny").stdout


def test_a_home_that_cannot_be_written_stops_serve_in_words(tmp_path: Path) -> None:
    """A full disk or a folder that is not ours is no stack trace (here: a file where the home should be)."""
    (tmp_path / "file").write_text("")
    done = _run(tmp_path, "serve", "--port", "0", "--home", str(tmp_path / "file"))
    assert done.returncode == 1
    assert done.stderr == f"interlace: {tmp_path / 'file'}: File exists.\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [("checkpoints", "list"), ("checkpoints", "show", "tiny"), ("config", "check")])
def test_a_reader_who_leaves_is_no_error(tmp_path: Path, words: tuple[str, ...], unbuffered: str) -> None:
    """`interlace checkpoints list | true` says nothing, least of all that something is wrong with the store."""
    pull(str(tiny_llama_gguf(tmp_path / "tiny.gguf")), tmp_path)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, *words], env=environment(tmp_path) | {"PYTHONUNBUFFERED": unbuffered}, cwd=tmp_path,
        stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=60,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_terminal_without_the_letter_gets_another(tmp_path: Path) -> None:
    """Where the terminal's encoding lacks a letter, a question mark stands for it; the command does its work."""
    (tmp_path / "\u043c\u043e\u0439.yaml").write_text("port: 1\n")
    done = subprocess.run(
        [*COMMAND, "config", "check", "\u043c\u043e\u0439.yaml"],
        env=environment(tmp_path) | {"PYTHONIOENCODING": "latin-1"}, cwd=tmp_path, capture_output=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"???.yaml is good\n")


def test_names_are_never_cut(tmp_path: Path) -> None:
    """Tables go to pipes and narrow terminals whole: their names are there to be copied."""
    name = "a-model-with-a-rather-long-name-" * 3
    config = tmp_path / "interlace.yaml"
    config.write_text(f"port: {free_port()}\nmodels:\n  - {{name: {name}, checkpoint: /some/where/{name}}}\n")
    done = _run(tmp_path, "models")
    assert done.returncode == 0
    assert done.stdout.splitlines()[1].split() == [name, "not", "running", f"/some/where/{name}"]


def test_models_asks_the_server_it_is_told_of(tmp_path: Path) -> None:
    """With --url, a server that does not answer is an error, and so is an address that is none."""
    for url, words in (("http://127.0.0.1:1", "No server answers"), ("http://[", "no server's address")):
        done = _run(tmp_path, "models", "--url", url)
        assert (done.returncode, done.stdout) == (1, "")
        assert words in done.stderr
        assert "Traceback" not in done.stderr
