"""`precision: auto`: measured once on each kind of machine, and never the reason why a model does not start."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from interlace.config import ModelSettings
from interlace.engines.core import Core
from interlace.engines.local import load_core
from interlace.engines.local.choosing import choose, speed_at
from interlace.engines.local.measure_commands import measure_command
from interlace.engines.local.measuring import Subject, measure_and_keep, settled
from interlace.models import (
    AgreementGate,
    Checkpoint,
    DecoderArchitecture,
    Machine,
    Measurement,
    Trial,
    get_checkpoint,
    measurements,
    pull,
    read_architecture,
    read_measurement,
    this_machine,
)
from interlace.models.commands import show_command
from tests.support.tiny import Tensors, tiny_llama_safetensors, tiny_weights

NAME = "tiny"
MEASURING = "measuring precisions"


def lopsided_weights() -> Tensors:
    """Weights that eight bits a number cannot hold: in every row of a matrix one is enormous, and meets a zero."""
    weights = tiny_weights()
    for layer in range(2):
        at = f"model.layers.{layer}.mlp"
        weights[f"{at}.up_proj.weight"][7] = 0
        weights[f"{at}.down_proj.weight"] *= 8  # so that the layer matters
        weights[f"{at}.down_proj.weight"][:, 7] = 1e5
    return weights


@pytest.fixture(scope="module")
def measured_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose one checkpoint was served with `precision: auto` once."""
    folder = tmp_path_factory.mktemp("precision")
    pull(str(tiny_llama_safetensors(folder / "source", weights=lopsided_weights())), folder / "home", name=NAME)
    loaded(folder / "home", told := [])
    assert any(MEASURING in text for text in told)
    return folder / "home"


@pytest.fixture
def home(measured_home: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(measured_home, tmp_path / "home")
    return tmp_path / "home"


def loaded(home: Path, told: list[str], precision: str = "auto", **settings: Any) -> Core:
    """The model as an engine host loads it; what it told goes into `told`."""
    named: dict[str, Any] = {
        "name": "test",
        "checkpoint": NAME,
        "cache_bytes": 4 << 20,
        "threads": 1,
        "precision": precision,
    }
    return load_core(ModelSettings(**(named | settings)), home, told.append)


def checkpoint_of(home: Path) -> Checkpoint:
    """The one in the store."""
    return get_checkpoint(NAME, home)


def subject_of(home: Path, threads: int = 1) -> Subject:
    """It as what is measured."""
    checkpoint = checkpoint_of(home)
    architecture = read_architecture(checkpoint.path)
    assert isinstance(architecture, DecoderArchitecture)
    return Subject(checkpoint, architecture, home, threads)


def measured(home: Path) -> Measurement:
    """What is kept for one thread on this machine."""
    found = read_measurement(checkpoint_of(home), home, this_machine(1))
    assert found is not None
    return found


def test_a_bad_precision_fails(home: Path) -> None:
    """What agrees too seldom is not taken however fast it is, and its figures are kept; the exact ones agree always."""
    trials = {trial.precision: trial for trial in measured(home).trials}
    gate = checkpoint_of(home).manifest.gate
    assert list(trials) == ["f32", "file", "bf16", "int8"]
    assert measured(home).reference == "f32"
    assert [trials[name].agreed for name in ("f32", "file")] == [trials["f32"].tokens] * 2
    assert trials["f32"].tokens >= gate.tokens == 2048
    assert trials["int8"].percent < gate.percent == 98.5
    assert all(trial.one > 0 and trial.many > trial.one and trial.bytes > 10 << 20 for trial in trials.values())
    fast = replace_trial(measured(home), "int8", one=1e9, many=1e9)
    assert choose(fast, gate, 32).precision != "int8"
    assert f"int8 agrees on {trials['int8'].percent:.1f} %" in choose(fast, gate, 32).why


def replace_trial(measurement: Measurement, precision: str, **changes: Any) -> Measurement:
    """The measurement with other figures of one precision."""
    trials = tuple(
        msgspec.structs.replace(trial, **changes) if trial.precision == precision else trial
        for trial in measurement.trials
    )
    return msgspec.structs.replace(measurement, trials=trials)


def test_the_choice_is_kept(home: Path) -> None:
    """The next start measures nothing and takes the same; which it is, is told and shown."""
    told: list[str] = []
    core = loaded(home, told)
    choice = choose(measured(home), AgreementGate(), 32)
    assert core.capabilities().precision == choice.precision
    assert not any(MEASURING in text for text in told)
    assert any(text.startswith(f"precision {choice.precision} is chosen for test: ") for text in told)


def test_a_precision_that_is_named_wins(home: Path) -> None:
    """Who names one gets it, and nothing is measured or read."""
    shutil.rmtree(checkpoint_of(home).path.parent / "measured")
    told: list[str] = []
    assert loaded(home, told, "int8").capabilities().precision == "int8"
    assert not any(MEASURING in text for text in told)
    assert measurements(checkpoint_of(home), home) == []


def test_another_machine_measures_anew(home: Path) -> None:
    """An engine with more threads is another machine: it measures, and both records are kept."""
    told: list[str] = []
    loaded(home, told, threads=2)
    assert any(MEASURING in text for text in told)
    assert sorted(one.machine.threads for one in measurements(checkpoint_of(home), home)) == [1, 2]


@pytest.mark.parametrize("text", ["{", '{"weights": "x"}', "\x00" * 100, "[" * 100_000])
def test_a_broken_record_is_measured_anew(home: Path, text: str) -> None:
    """A record that cannot be read is none; the one that takes its place can."""
    (file,) = (checkpoint_of(home).path.parent / "measured").glob("*.json")
    before = measured(home)
    file.write_text(text)
    assert read_measurement(checkpoint_of(home), home, before.machine) is None
    found = measure_and_keep(subject_of(home), before.machine, lambda *_: None, candidates=("file",))
    assert found == measured(home)
    assert measured(home).reference == "file"


def test_a_record_of_other_weights_is_none(home: Path) -> None:
    """Where the weights, or the machine in the record, are others, it is not found."""
    (file,) = (checkpoint_of(home).path.parent / "measured").glob("*.json")
    for key, value in (("weights", "0" * 64), ("method", 0), ("machine", {"processor": "another"})):
        record = json.loads(file.read_text())
        changed = record | {key: record[key] | value if isinstance(value, dict) else value}
        file.write_text(json.dumps(changed))
        assert read_measurement(checkpoint_of(home), home, this_machine(1)) is None, key
        file.write_text(json.dumps(record))
    assert read_measurement(checkpoint_of(home), home, this_machine(1)) is not None


def test_weights_at_a_path(tmp_path: Path) -> None:
    """Beside a checkpoint that is not ours nothing is written, and when its file changes it is measured anew."""
    path = tiny_llama_safetensors(tmp_path / "theirs")
    files = sorted(path.iterdir())
    subject = at_path(path, tmp_path)
    machine = this_machine(1)
    assert isinstance(measure_and_keep(subject, machine, lambda *_: None, candidates=("file",)), Measurement)
    assert sorted(path.iterdir()) == files
    assert read_measurement(subject.checkpoint, tmp_path, machine) is not None
    tiny_llama_safetensors(path, weights=tiny_weights(seed=1))
    assert read_measurement(at_path(path, tmp_path).checkpoint, tmp_path, machine) is None


def at_path(path: Path, home: Path) -> Subject:
    """What lies at a path, as what is measured."""
    from interlace.models import resolve

    architecture = read_architecture(path)
    assert isinstance(architecture, DecoderArchitecture)
    return Subject(resolve(str(path), home), architecture, home, 1)


# --- what may go wrong -----------------------------------------------------------------------------------------


@dataclass
class Killing:
    """Ends the process of a trial once it is well under way, as the system does where memory runs out."""

    precisions: tuple[str, ...]

    def __call__(self, text: str, _share: float) -> None:
        """End it, where it is one of those."""
        if any(f": {precision}," in text for precision in self.precisions):
            for child in psutil.Process().children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if "interlace.engines.local.trial" in child.cmdline():  # databases of other tests run beside it
                        child.kill()


def test_a_trial_that_crashes(home: Path) -> None:
    """Only its own precision is lost; where the others have nothing to be compared with, nothing is kept."""
    machine = this_machine(1)
    found = measure_and_keep(subject_of(home), machine, Killing(("f32", "bf16")))
    assert isinstance(found, Measurement)
    assert found.reference == "file"
    trials = {trial.precision: trial for trial in found.trials}
    assert "status -9 (out of memory?)" in trials["f32"].problem
    assert "status -9" in trials["bf16"].problem
    assert trials["int8"].tokens >= 2048
    assert "bf16: its process ended" in choose(found, AgreementGate(), 32).why
    shutil.rmtree(checkpoint_of(home).path.parent / "measured")
    assert "f32: its process ended" in str(measure_and_keep(subject_of(home), machine, Killing(("f32", "file"))))
    assert measurements(checkpoint_of(home), home) == []


def test_no_more_than_two_attempts(home: Path) -> None:
    """Starts that died while they measured do not make all others die: the third does not measure."""
    folder = checkpoint_of(home).path.parent / "measured"
    (file,) = folder.glob("*.json")
    file.unlink()
    (folder / f"{file.stem}.begun").write_text("..")
    told: list[str] = []
    assert loaded(home, told).capabilities().precision == "file"
    assert not any(MEASURING in text for text in told)
    assert measure_command(NAME, home, threads=1, seconds=100, as_json=True) == 0
    assert not (folder / f"{file.stem}.begun").exists()
    assert measured(home).reference == "f32"


def test_too_little_memory(home: Path) -> None:
    """What would not fit is not tried; what did not fit when it was to be taken gives way to what fits."""
    before = measured(home)
    manifest = checkpoint_of(home).path.parent / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"parameters": 10**13}))
    told: list[str] = []
    assert loaded(home, told).capabilities().precision == "file"
    found = measure_and_keep(subject_of(home), before.machine, lambda *_: None)
    assert isinstance(found, Measurement)
    assert [bool(trial.problem) for trial in found.trials] == [True, False, True, True]
    assert "it needs about" in found.trials[0].problem
    assert found.reference == "file"


def test_too_little_time(home: Path) -> None:
    """What takes too long is ended, and the start goes on."""
    found = measure_and_keep(subject_of(home), this_machine(1), lambda *_: None, limit_seconds=0.05)
    assert "f32: it took longer than the 0 s" in str(found)
    assert "file: no time was left for it" in str(found)


def test_a_home_that_cannot_be_written(tmp_path: Path, home: Path) -> None:
    """Where nothing can be locked or kept, the model starts as its file is."""
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    subject = replace(subject_of(home, threads=3), home=nowhere / "home")
    settings = ModelSettings(name="test", checkpoint=NAME, precision="auto")
    assert settled(settings, subject, lambda _: None).precision == "file"


# --- the rule --------------------------------------------------------------------------------------------------

MACHINE = Machine("some", "00", 2, 2, "1")


def of(*trials: Trial) -> Measurement:
    """A measurement with these trials, made with ten streams."""
    return Measurement("w", 1, MACHINE, "f32", 10, trials, 1.0, "2026-11-26T00:00:00+00:00")


def test_the_rule() -> None:
    """Fastest at the expected streams; near the fastest the more exact, then the smaller; nothing below the gate."""
    f32 = Trial("f32", 1280, 1280, one=50, many=100, bytes=4)
    bf16 = Trial("bf16", 1265, 1280, one=40, many=200, bytes=3)
    int8 = Trial("int8", 1230, 1280, one=90, many=900, bytes=2)
    gate = AgreementGate(tokens=1280)
    assert choose(of(f32, bf16, int8), gate, 10).precision == "bf16"
    assert choose(of(f32, bf16, int8), gate, 1).precision == "f32"
    assert choose(of(f32, bf16, int8), AgreementGate(percent=96, tokens=1280), 10).precision == "int8"
    assert choose(of(f32, bf16, int8), AgreementGate(tokens=1281), 10).precision == "file"
    assert choose(of(f32, bf16), gate, 10, fits=lambda name: name != "bf16").precision == "f32"
    near = msgspec.structs.replace(bf16, many=104)
    assert choose(of(near, f32), gate, 10).precision == "f32"
    smaller = msgspec.structs.replace(f32, precision="file", many=99, bytes=1)
    assert choose(of(f32, smaller), gate, 10).precision == "file"
    assert choose(of(Trial("f32", problem="broke")), gate, 10).precision == "file"
    why = choose(of(f32, bf16, int8), gate, 10).why
    assert why == (
        "200 tokens/s at 10 streams (f32 100) and agreement with f32 on 98.8 % of 1,280 tokens; "
        "int8 agrees on 96.1 % of 1,280 tokens, the gate is 98.5 % of 1,280"
    )


def test_speed_between_one_and_many() -> None:
    """Between what was measured a step grows by the same for each stream; it never leaves what was measured."""
    trial = Trial("f32", 1, 1, one=50, many=100)  # a step of 20 ms, and of 100 ms for ten
    assert speed_at(trial, 1, 10) == pytest.approx(50)
    assert speed_at(trial, 4, 10) == pytest.approx(4 / (0.02 + 3 * 0.08 / 9))
    assert speed_at(trial, 10, 10) == speed_at(trial, 500, 10) == 100


def test_machines_differ(tmp_path: Path) -> None:
    """Another processor, other abilities of it or other threads are another machine; the order of flags is nothing."""
    text = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: sse avx2\n\nprocessor\t: 1\nmodel name\t: Other\n"

    def machine(text: str, threads: int = 2) -> Machine:
        (tmp_path / "cpuinfo").write_text(text)
        return this_machine(threads, tmp_path / "cpuinfo")

    one = machine(text)
    assert one.processor == "Some CPU"
    assert machine(text.replace("sse avx2", "avx2 sse")) == one
    others = [text.replace("avx2", "avx512_bf16"), text.replace("Some CPU", "Another")]
    assert all(machine(other) != one for other in others)
    assert machine(text, 3) != one
    assert this_machine(2, tmp_path / "none").processor
    assert this_machine(2) == this_machine(2)


# --- the commands, and the real model --------------------------------------------------------------------------


def test_commands(home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What was measured is shown with the checkpoint, for people and programs; a checkpoint that is none is told."""
    assert show_command(NAME, home) == 0
    shown = capsys.readouterr().out
    assert "percent 98.5, tokens 2048" in shown
    assert "32 STREAMS" in shown
    assert "GATE 98.5 %" in shown
    assert show_command(NAME, home, as_json=True) == 0
    (one,) = json.loads(capsys.readouterr().out)["measured"]
    assert [trial["precision"] for trial in one["trials"]] == ["f32", "file", "bf16", "int8"]
    assert measure_command(NAME, home, threads=1, seconds=200, as_json=False) == 0
    out, err = capsys.readouterr()
    assert "measuring precisions on this machine, once: bf16, 3 of 4" in err
    assert "`precision: auto` with `expected_streams: 1` is " in out
    assert measure_command("nothing", home, threads=1, seconds=200, as_json=False) == 1
    assert "no checkpoint nothing" in capsys.readouterr().err


@pytest.mark.nightly
def test_the_real_model(smollm2_gguf: Path, tmp_path: Path) -> None:
    """Of SmolLM2 the file's own numbers agree with f32, eight bits do not pass, and what is chosen does."""
    settings = ModelSettings(name="test", checkpoint=str(smollm2_gguf), precision="auto", cache_bytes=64 << 20)
    core = load_core(settings, tmp_path, lambda _: None)
    (record,) = (tmp_path / "measured").glob("*/*.json")
    found = msgspec.json.decode(record.read_bytes(), type=Measurement)
    trials = {trial.precision: trial for trial in found.trials}
    assert trials["file"].percent > 99.9
    assert 96.5 < trials["int8"].percent < 98.5 < trials["bf16"].percent
    assert core.capabilities().precision == choose(found, AgreementGate(), 32).precision != "int8"
