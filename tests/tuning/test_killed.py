"""`kill -9` while what a run has made is put into service: afterwards there is what was there before, or what was made,
whole; and the same command ends it.

A tiny random Llama, and an adapter written by hand, stand for what was learnt.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from interlace.config import ModelSettings, Settings, read_added_models
from interlace.gateway.adapter_placing import place_adapter
from interlace.gateway.asking import Where
from interlace.models import list_checkpoints, read_added, sweep_copies, verify_checkpoint
from interlace.models.adapter_store import find_copy
from interlace.models.store import sweep
from interlace.tuning.folder import RunFolder, TuningError, seal
from interlace.tuning.placing import place_result
from interlace.tuning.settings import TuneSettings
from tests.support.adapters import random_adapter
from tests.support.killing import Moments, killed_at, preload, tree
from tests.support.serving import environment, free_port
from tests.support.tiny import tiny_llama_safetensors, tiny_weights

preload(__name__)

RUN = TuneSettings(base="base", data="x", name="mine", method="full", owner="everybody")


@dataclass(frozen=True)
class Case:
    """Something that is put into service in a home whose server does not run. `prepare` makes the home."""

    prepare: Callable[[Path], None]
    work: Callable[[Path], None]


def _where(home: Path) -> Where:
    return Where(environment(home), url=f"http://127.0.0.1:{free_port()}", config=home / "interlace.yaml")


def _learnt(home: Path, seed: int) -> None:
    """The home has a run that ended with these weights."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "interlace.yaml").write_text(f"models: [{{name: tiny, checkpoint: {home.parent / 'base'}}}]\n")
    folder = RunFolder(home, "mine", "full")
    shutil.rmtree(folder.result, ignore_errors=True)
    tiny_llama_safetensors(folder.result, weights=tiny_weights(seed))
    (folder.result / "manifest.json").write_text(json.dumps({"seed": seed}))


def _learnt_adapter(home: Path, seed: int) -> None:
    _learnt(home, 1)
    adapter, _ = random_adapter(home.parent / f"adapter-{seed}", seed)
    shutil.copytree(adapter, RunFolder(home, "mine").result, dirs_exist_ok=True)


def place(home: Path) -> None:
    """As `interlace tune --method full` does at its end, with `--fresh`."""
    settings = Settings(home=home, models=(ModelSettings("tiny", "base"),))
    place_result(RUN, RunFolder(home, "mine", "full"), "tiny", settings, _where(home), replace=True)


def place_lora(home: Path) -> None:
    """The same of an adapter."""
    place_adapter(RunFolder(home, "mine").result, "tiny", "mine", "", _where(home), replace=True)


def _first(home: Path) -> None:
    _learnt(home, 1)


def _second(home: Path) -> None:
    _learnt(home, 1)
    place(home)
    _learnt(home, 2)


def _first_adapter(home: Path) -> None:
    _learnt_adapter(home, 1)


def _second_adapter(home: Path) -> None:
    _learnt_adapter(home, 1)
    place_lora(home)
    _learnt_adapter(home, 2)


CASES = {
    "a checkpoint": Case(_first, place),
    "a checkpoint instead of another": Case(_second, place),
    "an adapter": Case(_first_adapter, place_lora),
    "an adapter instead of another": Case(_second_adapter, place_lora),
}


def _served(home: Path) -> list[object]:
    """What the next server serves beside its configuration; all that is there must be whole."""
    for checkpoint in list_checkpoints(home):
        assert verify_checkpoint(checkpoint.name, home) == []
    there = {checkpoint.name: checkpoint.manifest.files for checkpoint in list_checkpoints(home)}
    adapters = read_added(home)
    for entry in adapters:
        find_copy(home, entry.digest)
    models = read_added_models(home)
    assert len({entry.name for entry in (*models, *adapters)}) == len(models) + len(adapters)
    return [*adapters, *((entry, there[entry.checkpoint]) for entry in models)]


def _sweep(case: Case, folder: Path, moments: Moments) -> int:
    """Kill it at every moment; how many there are."""
    case.prepare(folder / "first")
    before = _served(folder / "first")
    shutil.copytree(folder / "first", folder / "home")
    home = folder / "home"
    case.work(home)
    after, whole = _served(home), tree(home)
    assert after != before
    for moment in count():
        shutil.rmtree(home)
        shutil.copytree(folder / "first", home)
        if not killed_at(moment, case.work, home, moments=moments):
            assert _served(home) == after
            return moment
        assert _served(home) in (before, after), f"half of it is there, when killed at moment {moment}"
        case.work(home)
        assert _served(home) == after, f"the same again does not end it, when killed at moment {moment}"
        _tidied(home)
        assert tree(home) == whole, f"something is left behind, when killed at moment {moment}"
    raise AssertionError


def _tidied(home: Path) -> None:
    """As by the next pull of anything, and by a start of the server an hour later."""
    sweep(home)
    for file in home.glob("adapters/.partial-*"):
        os.utime(file, (0, 0))
    sweep_copies(home)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.nightly] if name == "a checkpoint" else []) for name, case in CASES.items()],
    ids=CASES,
)
def test_killed_before_any_change_of_the_disk(case: Case, tmp_path: Path) -> None:
    """Half a checkpoint in the store or half an entry would be served, or keep the server from starting; what is left
    behind would fill the disk, one kill after the other."""
    assert _sweep(case, tmp_path, "changes") > 10


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_killed_before_any_line(case: Case, tmp_path: Path) -> None:
    """The same at a moment between two changes, where a file is open and half of it is written."""
    assert _sweep(case, tmp_path, "lines") > 100


def begin_anew(home: Path) -> None:
    """As `interlace tune --fresh` does at its beginning."""
    folder = RunFolder(home, "mine", "full")
    folder.settle()
    folder.claim({"seed": 2}, fresh=True)


def take_its_place(home: Path) -> None:
    """As it does once its run has finished."""
    RunFolder(home, "mine", "full").settle()


def _finish(folder: RunFolder, seed: int) -> None:
    folder.result.mkdir()
    for file in (folder.result / "manifest.json", folder.path / "report.json"):
        file.write_text(json.dumps({"seed": seed}))


def test_killed_while_an_earlier_run_is_thrown_away(tmp_path: Path) -> None:
    """Either what the earlier run has learnt is there whole, and the next command hears so, or nothing of it: the next
    run would else go on from there."""
    first = RunFolder(tmp_path / "first", "mine", "full")
    first.claim({"seed": 1}, fresh=False)
    for file in ("checkpoints/checkpoint-3/weights", "before.json"):
        (first.path / file).parent.mkdir(parents=True, exist_ok=True)
        (first.path / file).write_text("{}")
    seal(first.checkpoints / "checkpoint-3")
    whole = tree(tmp_path / "first")
    home = tmp_path / "home"
    for moment in count():
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(tmp_path / "first", home)
        if not killed_at(moment, begin_anew, home):
            break
        folder = RunFolder(home, "mine", "full")
        try:
            folder.claim({"seed": 2}, fresh=False)
        except TuningError:
            assert tree(home) == whole
            folder.claim({"seed": 2}, fresh=True)
        assert folder.last_sealed() is None, f"the next run has the earlier one's, when killed at moment {moment}"
        assert tree(folder.path) - {"replaces"} == {"run.json"}
    assert moment > 5


def test_killed_while_a_run_begins_beside_a_finished_one(tmp_path: Path) -> None:
    """The finished one is as it was, and the next command begins beside it, with nothing that the killed one left."""
    first = RunFolder(tmp_path / "first", "mine", "full")
    first.claim({"seed": 1}, fresh=False)
    _finish(first, 1)
    old = first.claim({"seed": 3}, fresh=True)
    (old.path / "before.json").write_text("{}")
    home = tmp_path / "home"
    for moment in count():
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(tmp_path / "first", home)
        killed = killed_at(moment, begin_anew, home)
        folder = RunFolder(home, "mine", "full")
        folder.settle()
        assert tree(folder.path) == tree(first.path)
        assert folder.manifest() == {"seed": 1}
        beside = folder.claim({"seed": 2}, fresh=True)
        assert tree(beside.path) == {"run.json", "replaces"}
        if not killed:
            break
    assert moment > 5


def test_killed_while_a_finished_run_takes_the_place_of_another(tmp_path: Path) -> None:
    """Whichever is there, it is there whole, and the next command has the new one; both gone, hours would be lost."""
    first = RunFolder(tmp_path / "first", "mine", "full")
    first.claim({"seed": 1}, fresh=False)
    _finish(first, 1)
    _finish(first.claim({"seed": 2}, fresh=True), 2)
    home = tmp_path / "home"
    shutil.copytree(tmp_path / "first", home)
    take_its_place(home)
    whole = tree(home)
    for moment in count():
        shutil.rmtree(home)
        shutil.copytree(tmp_path / "first", home)
        killed = killed_at(moment, take_its_place, home)
        folder = RunFolder(home, "mine", "full")
        assert not folder.finished or folder.manifest() in ({"seed": 1}, {"seed": 2})
        folder.settle()
        assert folder.manifest() == {"seed": 2}
        assert folder.is_of({"seed": 2})
        assert folder.replaces
        assert tree(home) == whole, f"something is left behind, when killed at moment {moment}"
        if not killed:
            break
    assert moment > 5
