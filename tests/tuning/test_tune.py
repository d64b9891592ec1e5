"""`interlace tune` as a process, over a tiny random Llama: it learns, survives, and says how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import numpy as np
import psutil
import pytest

from interlace.models import expected_shapes, read_adapter, read_architecture
from interlace.tuning.folder import RunFolder, seal
from interlace.tuning.planning import plan_of
from interlace.tuning.settings import TuneSettings
from tests.support.served import patiently
from tests.support.serving import environment
from tests.support.tiny import TOKENS, tiny_llama_safetensors, tiny_weights
from tests.support.tuned import SETTINGS, Tuning, needs_parts

pytestmark = needs_parts


def _child_of(running: subprocess.Popen[str]) -> int:
    """The training process."""
    parent = psutil.Process(running.pid)
    patiently(lambda: bool(parent.children()))
    return int(parent.children()[0].pid)


def test_it_learns_and_says_what_it_did(whole: Tuning) -> None:
    """The held-out loss falls by more than its interval, and the manifest tells base, data, settings and figures; else
    nobody could say what the adapter is."""
    manifest = json.loads((whole.path / "adapter" / "manifest.json").read_text())
    assert manifest["metrics"]["loss_change"]["high"] < 0
    before, after = (manifest["metrics"][when]["loss"] for when in ("before", "after"))
    assert before["low"] <= before["value"] <= before["high"]
    assert after["value"] < before["value"]
    assert manifest["data"]["licence"] == "CC0-1.0"
    assert set(manifest["data"]["files"]) == {"train.jsonl"}
    assert manifest["data"]["examples"] + manifest["data"]["held_out"] == 40
    assert set(manifest["base"]["files"]) == {"model.safetensors"}
    assert manifest["settings"]["rank"] == 4
    assert {"torch", "trl", "peft", "transformers"} <= set(manifest["libraries"])
    report = whole.report()
    assert [step for step, _ in report["curve"]["train"]] == list(range(1, report["steps"] + 1))
    assert (whole.path / "loss.svg").read_text().startswith("<svg")
    assert not (whole.path / "checkpoints").exists()


def test_what_was_looked_at_is_not_scored_again(whole: Tuning, tmp_path: Path) -> None:
    """The look at the held-out examples with the weights that are kept is their score, to the last bit, also where the
    run was cut off in between: a pass over many examples takes minutes. Told apart by a look that somebody changed."""
    report = whole.report()
    looks = dict(report["curve"]["held_out"])
    assert report["metrics"]["after"]["loss"]["value"] == looks[report["best_step"]]
    tuning = Tuning(
        tmp_path, SETTINGS.replace("epochs: 4", "epochs: 40").replace("evaluate_every: 3", "evaluate_every: 1")
    )
    running = tuning.start()
    patiently(lambda: len(tuning.sealed()) > 0 and tuning.sealed()[-1] > 2)
    running.kill()
    running.communicate()
    changed = set()
    with RunFolder(tuning.home, "mine").locked("training", 10.0):
        for step in tuning.sealed():
            place = tuning.path / "checkpoints" / f"checkpoint-{step}"
            known = json.loads((place / "known.json").read_text())
            (place / "known.json").write_text(json.dumps([{**one, "nats": 7.0 * one["tokens"]} for one in known]))
            seal(place)
            changed.add(step)
        state = json.loads((place / "trainer_state.json").read_text())
        (place / "trainer_state.json").write_text(json.dumps({**state, "max_steps": state["global_step"]}))
        seal(place)
    done = tuning.run()
    assert done.returncode == 0, done.stderr
    assert tuning.report()["best_step"] in changed
    assert tuning.report()["metrics"]["after"]["loss"]["value"] == pytest.approx(7.0)


def test_the_memory_that_is_planned_is_what_it_took(whole: Tuning) -> None:
    """Of a tiny model that is the libraries alone: a plan without them says that half a gigabyte is nothing, and of
    twice as many processes that they fit."""
    manifest = whole.report()
    if manifest["machine"]["device"]:
        pytest.skip("this machine computes on a GPU")
    data = manifest["data"]
    assert 0 < data["answer_tokens"] < data["tokens"]
    settings = TuneSettings(**manifest["settings"])
    planned = plan_of(whole.folder / "base", settings, data["tokens"], [], data["answer_tokens"])
    assert planned.memory[0].bytes == pytest.approx(manifest["peak_memory_bytes"], rel=0.2)


def test_the_adapter_is_one_that_the_engine_reads(whole: Tuning) -> None:
    """Its config has no field that serving refuses, and every layer fits the base."""
    linears = {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in expected_shapes(read_architecture(whole.folder / "base")).items()
        if len(shape) == 2 and "_proj" in name
    }
    layers = read_adapter(whole.path / "adapter", linears, most_bytes=1 << 20)
    assert set(layers) == set(linears)


def test_killed_at_any_moment_it_goes_on_to_the_same_losses(whole: Tuning, tmp_path: Path) -> None:
    """`kill -9` of the command in the middle, and the same command again: every loss is the same to the last bit,
    and so are the weights; the training process does not outlive the command."""
    tuning = Tuning(tmp_path)
    running = tuning.start()
    deadline = time.monotonic() + 100
    while not tuning.sealed():
        assert time.monotonic() < deadline
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    with RunFolder(tuning.home, "mine").locked("training", 10.0):
        assert tuning.sealed()[0] < whole.report()["steps"]
        assert tuning.say_memory(1 << 40) > 1 << 20
    done = tuning.run()
    assert done.returncode == 0, done.stderr
    assert "Going on at step" in done.stderr
    assert tuning.report()["curve"] == whole.report()["curve"]
    assert tuning.report()["metrics"] == whole.report()["metrics"]
    assert tuning.report()["tokens"] == whole.report()["tokens"], "it learnt again what it had learnt"
    assert tuning.report()["peak_memory_bytes"] == 1 << 40, "the memory told is that of the last part alone"
    weights = [one.path / "adapter" / "adapter_model.safetensors" for one in (tuning, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_again_it_trains_nothing(whole: Tuning) -> None:
    """The same command after the end finds the adapter, quickly; other settings are refused with what differs."""
    before = (whole.path / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    done = whole.run()
    assert done.returncode == 0, done.stderr
    assert "trained before" in done.stderr
    other = whole.run("--epochs", "9", "--seed", "2", "--columns", "messages=messages")
    assert other.returncode == 1
    assert "columns, " in other.stderr
    assert "epochs, " in other.stderr
    assert "seed" in other.stderr
    assert "--fresh" in other.stderr
    assert (whole.path / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("begun_in", ["f32", "bf16"])
def test_a_run_of_the_quicker_precision_goes_on_in_that_it_was_begun_in(tmp_path: Path, begun_in: str) -> None:
    """`precision: auto` measures where no run is there, and else goes on in the run's, whichever is quicker now."""
    settings = SETTINGS.replace("epochs: 4", "epochs: 0.5")
    tuning = Tuning(tmp_path, settings.replace("nice: 0", f"nice: 0, precision: {begun_in}"))
    assert (done := tuning.run()).returncode == 0, done.stderr
    (tmp_path / "tune.yaml").write_text(settings.replace("nice: 0", "nice: 0, precision: auto"))
    again = tuning.run()
    assert again.returncode == 0, again.stderr
    assert "trained before" in again.stderr
    assert "auto is" not in again.stderr
    anew = tuning.run("--seed", "5", "--fresh")
    assert anew.returncode == 0, anew.stderr
    manifest = json.loads((tuning.path / "adapter" / "manifest.json").read_text())
    assert f"precision: auto is {manifest['settings']['precision']} here" in anew.stderr


def test_code_beside_the_data_is_never_run(tmp_path: Path) -> None:
    """Who tunes in a folder from elsewhere, a checkpoint's say, must not run what lies in it by the name of a library:
    neither the training process, nor what measures the machine."""
    tuning = Tuning(
        tmp_path, SETTINGS.replace("epochs: 4", "epochs: 0.2").replace("nice: 0", "nice: 0, precision: auto")
    )
    for name in ("torch", "numpy", "datasets", "peft"):
        (tmp_path / f"{name}.py").write_text("open('was-run', 'w')\nraise SystemExit(3)\n")
    command = [str(Path(sys.executable).with_name("interlace")), *tuning.command()[3:]]
    for more in (["--plan"], []):
        done = subprocess.run(
            [*command, *more], cwd=tmp_path, env=environment(tuning.home), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=200,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert not (tmp_path / "was-run").exists()


def test_two_runs_of_one_name_do_no_harm(whole: Tuning) -> None:
    """While one has the name, another is told so and touches nothing."""
    with RunFolder(whole.home, "mine").locked():
        done = whole.run("--fresh")
    assert done.returncode == 1
    assert "is going on" in done.stderr
    assert whole.report()["name"] == "mine"


def test_a_run_that_diverges_says_what_to_change(tmp_path: Path) -> None:
    """A loss that is no number ends the run, in words, and what was learnt before is kept. One token of this base is no
    number, and one example has it."""
    weights = tiny_weights()
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    weights["model.embed_tokens.weight"][TOKENS.index("Z")] = np.nan
    tiny_llama_safetensors(tmp_path / "base", weights=weights, config={"tie_word_embeddings": False})
    tuning = Tuning(tmp_path, SETTINGS.replace("evaluate_every: 3", "evaluate_every: 1"))
    lines = (tmp_path / "train.jsonl").read_text().splitlines(keepends=True)
    lines.insert(20, json.dumps({"prompt": "Z", "completion": "ab"}) + "\n")
    (tmp_path / "train.jsonl").write_text("".join(lines[:-5]))
    (tmp_path / "held-out.jsonl").write_text("".join(lines[-5:]))
    done = tuning.run("--held-out", "held-out.jsonl")
    assert done.returncode == 1, done.stdout
    assert "not a finite number" in done.stderr
    assert "learning_rate" in done.stderr
    assert "Traceback" not in done.stderr
    assert not tuning.path.joinpath("adapter").exists()
    assert tuning.sealed(), done.stderr


def test_the_training_process_stands_back(tmp_path: Path) -> None:
    """It has the priority that the settings say, and so has its session where Linux weighs those: with `nice` alone, it
    takes as much from a server beside it as ever."""
    tuning = Tuning(tmp_path, SETTINGS.replace("nice: 0", "nice: 7"))
    running = tuning.start()
    try:
        child = _child_of(running)
        patiently(lambda: os.getpriority(os.PRIO_PROCESS, child) == 7)
        group = Path(f"/proc/{child}/autogroup")
        if group.exists() and group.read_text().strip():
            patiently(lambda: group.read_text().split()[-1] == "7")
    finally:
        running.kill()
        running.communicate()


def test_a_killed_training_process_is_told_as_want_of_memory(tmp_path: Path) -> None:
    """The system kills whoever takes the last memory: the person hears what to change, not an exit code."""
    tuning = Tuning(tmp_path)
    running = tuning.start()
    os.kill(_child_of(running), signal.SIGKILL)
    _, told = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "memory" in told
    assert "max_tokens" in told


@pytest.mark.nightly
def test_killed_again_and_again_at_random_moments(whole: Tuning, tmp_path: Path) -> None:
    """Wherever `kill -9` hits, at loading, learning, saving or finishing, the same command makes the same adapter."""
    tuning, random = Tuning(tmp_path), Random(0)
    for _ in range(8):
        running = tuning.start()
        deadline = time.monotonic() + random.uniform(1, 12)
        while running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        running.kill()
        running.communicate()
    done = tuning.run()
    assert done.returncode == 0, done.stderr
    assert tuning.report()["curve"] == whole.report()["curve"]
    weights = [one.path / "adapter" / "adapter_model.safetensors" for one in (tuning, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.nightly
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk of its own")
def test_a_disk_that_fills_up_ends_the_run_in_words(tmp_path: Path) -> None:
    """On a disk too small for a checkpoint and the margin, the person hears both numbers; with room, the same command
    goes on."""
    tuning = Tuning(tmp_path)
    (tuning.home / "tuning").mkdir()
    small = ["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(tuning.home / "tuning")]
    if subprocess.run(small, check=False, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        done = tuning.run()
        assert done.returncode == 1
        assert "make room" in done.stderr
        subprocess.run(["mount", "-o", "remount,size=256m", str(tuning.home / "tuning")], check=True)
        assert tuning.run().returncode == 0
    finally:
        subprocess.run(["umount", str(tuning.home / "tuning")], check=True)
