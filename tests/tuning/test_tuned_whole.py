"""`interlace tune` of whole weights, of a private slice, and the plan of a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from interlace.config import read_added_models
from interlace.models import resolve
from tests.support.tiny import tiny_weights
from tests.support.tuned import SETTINGS, Tuning, needs_parts

pytestmark = needs_parts

QUICK = SETTINGS.replace("epochs: 4", "epochs: 1").replace("0.01", "0.001")


def _changed(tuning: Tuning) -> tuple[set[str], dict[str, np.ndarray]]:
    """Which weights of the base are others in the checkpoint, and all that it has."""
    checkpoint = resolve("mine", tuning.home)
    found = {name: values for file in checkpoint.path.glob("*.safetensors") for name, values in load_file(file).items()}
    return {name for name, values in tiny_weights().items() if not np.array_equal(found[name], values)}, found


@pytest.mark.nightly
def test_whole_weights_become_a_checkpoint(tmp_path: Path) -> None:
    """All of them move, and what comes out is a checkpoint of the store, with tokenizer and chat template, which the
    next server serves to its organisation; another run takes its place with --fresh, and leaves the first."""
    tuning = Tuning(tmp_path, QUICK)
    done = tuning.run("--method", "full")
    assert done.returncode == 0, done.stderr
    assert "Try it: interlace chat mine" in done.stdout
    changed, _ = _changed(tuning)
    assert changed == set(tiny_weights())
    assert resolve("mine", tuning.home).manifest.chat_template
    assert json.loads((tuning.path / "model" / "manifest.json").read_text())["kind"] == "full"
    assert tuning.run("--method", "full").returncode == 0  # finished: nothing to do
    (first,) = read_added_models(tuning.home)
    assert (first.checkpoint, first.owner[:4]) == ("mine", "org_")
    again = tuning.run("--method", "full", "--fresh", "--seed", "2")
    assert again.returncode == 0, again.stderr
    assert "interlace checkpoints rm mine" in again.stdout
    (now,) = read_added_models(tuning.home)
    assert now.checkpoint.startswith("mine-")
    assert resolve(now.checkpoint, tuning.home).manifest.files != resolve("mine", tuning.home).manifest.files


@pytest.mark.nightly
@pytest.mark.parametrize("head", [False, True])
def test_a_private_slice_leaves_the_open_rest_as_it_was(tmp_path: Path, head: bool) -> None:
    """Blocks outside, and the embeddings, are the base's to the last bit, else the published rest would not fit. With
    the head, a tied one gets weights of its own."""
    tuning = Tuning(tmp_path, QUICK)
    done = tuning.run("--private", "blocks:1-1+head" if head else "blocks:1-1")
    assert done.returncode == 0, done.stderr
    changed, found = _changed(tuning)
    inside = {name for name in tiny_weights() if name.startswith("model.layers.1.")}
    assert changed == inside | ({"model.norm.weight"} if head else set())
    if head:
        assert not np.array_equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
    else:
        assert "lm_head.weight" not in found


@pytest.mark.nightly
def test_blocks_that_are_not_there_are_refused(tmp_path: Path) -> None:
    """Before anything is trained, with what there is."""
    done = Tuning(tmp_path, QUICK).run("--private", "blocks:1-9")
    assert done.returncode == 2
    assert "which has 2" in done.stderr


@pytest.mark.parametrize("plan", [(), ("--plan",)], ids=["run", "plan"])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("targets: foo", "targets: 'foo' names no layer of this base that can be changed. There are: down_proj, gate_"),
        ("targets: 'q_proj,foo,bar'", "targets: 'foo, bar' names no layer of this base"),
        ("private: 'blocks:1-9'", "private: blocks:1-9 are no blocks of this base, which has 2. Write blocks:FIRST"),
    ],
    ids=["targets", "some", "private"],
)
def test_a_plan_answers_as_the_run_would(wrong: str, said: str, plan: tuple[str, ...], tmp_path: Path) -> None:
    """What is planned for other layers than the person meant would be refused at the run, or worse, learnt without
    them."""
    tuning = Tuning(tmp_path, QUICK.replace("}", f",\n{wrong}}}"))
    done = tuning.run(*plan)
    assert done.returncode == 2, done.stdout
    assert f"tune.yaml:2: {said}" in done.stderr


def test_a_plan_says_what_it_will_take_and_trains_nothing(tmp_path: Path) -> None:
    """Parameters, arithmetic, memory and hours, from the tokens of the data; no run is begun, and who asked is not set
    back with the process that counts."""
    tuning = Tuning(tmp_path, QUICK.replace("nice: 0", "nice: 19"))
    ours = Path("/proc/self/autogroup")
    before = ours.read_text() if ours.exists() else ""
    done = tuning.run("--plan")
    assert not before or ours.read_text() == before
    assert done.returncode == 0, done.stderr
    assert "FLOP" in done.stdout
    assert "this machine" in done.stdout
    assert not tuning.path.exists()
    assert "7,424 of" in done.stdout
