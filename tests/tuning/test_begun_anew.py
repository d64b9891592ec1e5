"""A name that is used again: what a finished run made stays until there is something better, and a run that learnt
nothing is in nobody's way."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path

import pytest

from interlace.tuning.folder import RunFolder, TuningError, seal, sha256_of
from tests.support.served import patiently
from tests.support.tuned import SETTINGS, Tuning, chats, needs_parts

ONE, TWO, THREE = ({"settings": {"seed": seed}} for seed in (1, 2, 3))


def _finish(folder: RunFolder, seed: int) -> None:
    folder.result.mkdir()
    (folder.result / "manifest.json").write_text(json.dumps({"seed": seed}))


def _files(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): sha256_of(file) for file in folder.rglob("*") if file.is_file()}


# --- the folder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_what_is_finished_stays_until_the_next_is(tmp_path: Path, kind: str) -> None:
    """With `fresh`, a run goes on beside it, by its own identity and no other's; once it is finished it takes its
    place, also of a result of the other kind. Thrown away at first, a mistake in the data would cost the adapter."""
    folder = RunFolder(tmp_path, "r")
    assert folder.claim(ONE, fresh=False).path == folder.path
    _finish(folder, 1)
    before = _files(folder.path)
    now = RunFolder(tmp_path, "r", kind)
    run = now.claim(TWO, fresh=True)
    assert run.path != folder.path
    assert now.claim(TWO, fresh=False).path == run.path
    assert folder.claim(ONE, fresh=False).path == folder.path
    with pytest.raises(TuningError, match="differs in seed"):
        now.claim(THREE, fresh=False)
    now.settle()
    assert _files(folder.path) == before
    _finish(run, 2)
    now.settle()
    assert now.manifest() == {"seed": 2}
    assert now.claim(TWO, fresh=False).path == folder.path
    assert not run.path.exists()
    assert folder.finished == (kind == "lora")


def test_what_has_taken_a_place_is_not_learnt_again_before_it_is_in_service(tmp_path: Path) -> None:
    """A command with `--fresh` that could not put its result into service says that the same command tries again, and
    trains nothing. After that, it begins anew as ever."""
    folder = RunFolder(tmp_path, "r")
    folder.claim(ONE, fresh=False)
    _finish(folder, 1)
    assert not folder.replaces
    _finish(folder.claim(TWO, fresh=True), 2)
    folder.settle()
    assert folder.replaces
    assert folder.claim(TWO, fresh=True).path == folder.path
    folder.placed()
    assert not folder.replaces
    assert folder.claim(TWO, fresh=True).path != folder.path


def test_what_was_begun_anew_goes_on_without_saying_so_again(tmp_path: Path) -> None:
    """With `fresh`, what is served by the name may be replaced. Cut off, it goes on without `fresh`, and must not be
    refused at its end for that name; another run, which nobody said that of, must."""
    folder = RunFolder(tmp_path, "r")
    folder.claim(ONE, fresh=False)
    assert not folder.may_replace(ONE)
    folder.claim(TWO, fresh=True)
    assert folder.may_replace(TWO)
    assert not folder.may_replace(THREE)
    assert folder.claim(TWO, fresh=False).path == folder.path
    assert folder.may_replace(TWO)
    folder.claim(THREE, fresh=False)
    assert not folder.may_replace(THREE)
    folder.claim(ONE, fresh=True)
    folder.placed()
    assert not folder.may_replace(ONE)


def test_a_run_that_learnt_nothing_makes_room(tmp_path: Path) -> None:
    """Its start has failed, or it was cut off before its first checkpoint: the mended command must not be refused for
    it, nor find anything of it. What was learnt stays."""
    folder = RunFolder(tmp_path, "r")
    folder.claim(ONE, fresh=False)
    (folder.path / "before.json").write_text("[]")
    half = folder.checkpoints / "checkpoint-3"
    half.mkdir(parents=True)
    (half / "weights").write_text("w")
    assert folder.claim(TWO, fresh=False).path == folder.path
    assert _files(folder.path).keys() == {"run.json"}
    half.mkdir(parents=True)
    (half / "weights").write_text("w")
    seal(half)
    with pytest.raises(TuningError, match="differs in seed"):
        folder.claim(ONE, fresh=False)
    assert folder.last_sealed() == half


def test_a_state_that_cannot_be_read_is_mended_as_the_message_says(tmp_path: Path) -> None:
    """It names --fresh, which must not end with the same message."""
    folder = RunFolder(tmp_path, "r")
    folder.claim(ONE, fresh=False)
    (folder.path / "run.json").write_text("{")
    with pytest.raises(TuningError, match="--fresh"):
        folder.claim(ONE, fresh=False)
    folder.claim(ONE, fresh=True)
    assert folder.is_of(ONE)


# --- the command -------------------------------------------------------------------------------------------------


@needs_parts
def test_a_run_begun_anew_says_how_it_goes_on(tmp_path: Path) -> None:
    """Ctrl-C: the same command with `--fresh` would throw away what was just learnt, so the message says to leave it
    out; and without it, it goes on from its last step."""
    tuning = Tuning(tmp_path, SETTINGS.replace("epochs: 4", "epochs: 40"))
    running = tuning.start("--fresh")
    patiently(lambda: bool(tuning.sealed()))
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=100)
    assert running.returncode == 130, told
    stopped = int(re.findall(r"Stopped at step (\d+)\. The same command goes on there\. Leave --fresh out", told)[0])
    again = tuning.start()
    heard = ""
    assert again.stderr is not None
    while "Going on at step" not in heard:
        heard = again.stderr.readline()
        assert heard
    assert f"Going on at step {stopped}." in heard
    again.send_signal(signal.SIGINT)
    _, told = again.communicate(timeout=100)
    assert again.returncode == 130, told
    assert "--fresh" not in told


@needs_parts
def test_a_start_that_fails_leaves_what_is_finished(whole: Tuning, tmp_path: Path) -> None:
    """`--fresh` with an example that is too long: adapter, manifest, report and picture are there as they were."""
    shutil.copytree(whole.folder / "base", tmp_path / "base")
    shutil.copytree(whole.home / "tuning", tmp_path / "home" / "tuning")
    tuning = Tuning(tmp_path)
    before = _files(tuning.path)
    assert "adapter/adapter_model.safetensors" in before
    long = {"messages": [{"role": "user", "content": "the 1"}, {"role": "assistant", "content": "ab" * 40}]}
    (tmp_path / "train.jsonl").write_text(chats() + json.dumps(long) + "\n")
    done = tuning.run("--fresh")
    assert done.returncode == 2, done.stderr
    assert "train.jsonl:41: messages: has" in done.stderr
    assert "over the 32 of max_tokens" in done.stderr
    assert _files(tuning.path) == before


@needs_parts
def test_a_start_that_fails_does_not_claim_the_name(tmp_path: Path) -> None:
    """The next command, with other settings, is told of its own mistake, not of a run that never was."""
    tuning = Tuning(tmp_path, SETTINGS.replace("}", ",\nprivate: 'blocks:90-99'}"))
    done = tuning.run()
    assert done.returncode == 2, done.stderr
    assert "tune.yaml:2: private: blocks:90-99 are no blocks of this base, which has 2" in done.stderr
    assert (tuning.path / "run.json").exists()
    (tmp_path / "tune.yaml").write_text(SETTINGS.replace("}", ",\ntargets: foo_proj}"))
    done = tuning.run()
    assert done.returncode == 2, done.stderr
    assert "There is a run" not in done.stderr
    assert "tune.yaml:2: targets: 'foo_proj' names no layer of this base that can be changed" in done.stderr
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in done.stderr


@needs_parts
def test_of_two_precisions_the_run_that_was_begun_anew_goes_on(tmp_path: Path) -> None:
    """`precision: auto` after `--fresh` was cut off: the finished run, which has the other precision, is not the one
    that is meant, and to say that all was trained before would leave the old adapter in service."""
    settings = SETTINGS.replace("epochs: 4", "epochs: 1")
    one = Tuning(tmp_path, settings)
    assert (done := one.run()).returncode == 0, done.stderr
    (tmp_path / "tune.yaml").write_text(settings.replace("nice: 0", "nice: 0, precision: bf16"))
    running = one.start("--fresh")
    anew = one.home / "tuning" / ".anew" / "mine"
    patiently(lambda: list(anew.glob("checkpoints/*/sealed.json")))
    running.send_signal(signal.SIGKILL)
    running.communicate()
    (tmp_path / "tune.yaml").write_text(settings.replace("nice: 0", "nice: 0, precision: auto"))
    done = one.run()
    assert done.returncode == 0, done.stderr
    assert "Going on at step" in done.stderr
    assert json.loads((one.path / "adapter" / "manifest.json").read_text())["settings"]["precision"] == "bf16"
