"""The parts of the contest that need no engine: who is asked what, what is made of the figures, who is given up."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from benchmarks.contestants import GENAI, VLLM, Contestant, adapted, commands, contestants, ours
from benchmarks.figures import Rate
from benchmarks.lora import RANK, RESIDENT, write_adapters
from benchmarks.peers.lines import Latecomer, Stopwatch
from benchmarks.verdicts import judge, shares
from benchmarks.worker import ContestantFailed, Worker
from interlace.models import read_adapter
from tests.support.tiny import tiny_llama_safetensors


def test_every_contestant_has_a_process_and_each_process_a_command():
    """A line of the tables that nobody measures would stay empty without a word."""
    from rich.console import Console

    known = commands(Path("a.gguf"), Path("f32"), Path("adapters"), Path("home"), 2, Console())
    assert {one.process for one in contestants()} == known.keys()
    names = [one.name for one in contestants()]
    assert len(set(names)) == len(names)
    assert known[ours("bf16")]()[-3:] == ["f32", "bf16", "2"]
    assert known[ours("int8")]()[-3:] == ["a.gguf", "int8", "2"]
    (many,) = [one for one in contestants() if one.name == adapted(ours("f32"), "many")]
    assert many.adapter_names(2) == ["many/0", "many/1"]


def test_adapters_are_different_and_are_read_as_adapters(tmp_path: Path):
    """Equal ones would measure a cache; ones that do not fit the base would measure nothing."""
    checkpoint = tiny_llama_safetensors(tmp_path / "tiny")
    folder = write_adapters(checkpoint, tmp_path / "adapters")
    shapes = {
        name.removesuffix(".weight"): tensor.shape
        for name, tensor in load_file(checkpoint / "model.safetensors").items()
        if "_proj" in name
    }
    first, last = (load_file(folder / "all" / str(n) / "adapter_model.safetensors") for n in (0, RESIDENT - 1))
    assert first.keys() == last.keys()
    assert len(first) == 2 * len(shapes)
    assert all((first[name] != last[name]).any() for name in first)
    for kind in ("all", "qv"):
        assert read_adapter(folder / kind / "0", shapes, most_bytes=1 << 30)
    fewer = load_file(folder / "qv" / "0" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in fewer} == {"q_proj", "v_proj"}
    assert all(RANK in tensor.shape for tensor in first.values())
    assert json.loads((folder / "qv" / "0" / "adapter_config.json").read_text())["target_modules"] == [
        "q_proj",
        "v_proj",
    ]
    before = (folder / "all" / "0" / "adapter_model.safetensors").stat().st_mtime_ns
    write_adapters(checkpoint, folder)
    assert (folder / "all" / "0" / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_goals_are_held_against_the_peer_of_equal_precision():
    """Each promise of the issue appears once, met or missed; the best precision is the fastest that is exact enough."""
    wide = "32 streams"

    def rate(phase: str, name: str, value: float, shape: str = wide) -> Rate:
        return Rate(phase, shape, name, (value,))

    bf16, int8, f32 = ours("bf16"), ours("int8"), ours("f32")
    rates = [
        rate("decode", f32, 400), rate("decode", VLLM, 200), rate("decode", adapted(f32), 300),
        rate("decode", adapted(VLLM), 100), rate("decode", bf16, 600), rate("decode", int8, 700),
        rate("decode", GENAI, 650), rate("agreement", bf16, 98.7), rate("agreement", int8, 96.0),
        rate("arrive", f32, 10.0), rate("arrive", VLLM, 20.0),
        rate("beside_all", adapted(f32), 300), rate("beside_all", f32, 350), rate("agreement", ours("file"), 100.0),
        rate("decode", ours("file"), 90, "1 stream"), rate("decode", bf16, 80, "1 stream"),
        rate("decode", GENAI, 100, "1 stream"),
    ]  # fmt: skip
    found = {(one.phase, one.contestant, one.against): one for one in judge(rates)}
    assert found["decode", f32, VLLM].met is True
    assert found["decode", adapted(f32), adapted(VLLM)].met is False
    assert found["beside_all", adapted(f32), f32].met is True
    assert found["decode", bf16, GENAI].met is True
    assert found["decode", ours("file"), GENAI].met is True
    assert ("decode", int8, GENAI) not in found
    assert found["arrive", f32, VLLM].met is True


def test_shares_of_the_machine():
    """One stream is bound by bytes and 32 by multiply-adds: 538 MB a step at 25 GB/s are 46.5 steps a second."""
    limits = {"GFLOP/s, f32": 200.0, "GFLOP/s, bf16": 400.0, "GB/s": 25.0}
    rates = [Rate("decode", "1 stream", ours("f32"), (46.46,)), Rate("decode", "32 streams", ours("f32"), (400.0,))]
    found = {(one.phase, one.shape): one.values[0] for one in shares(rates, limits)}
    assert found["share_bytes", "1 stream"] == pytest.approx(100, abs=0.1)
    assert found["share_arithmetic", "32 streams"] == pytest.approx(53.8, abs=0.1)
    assert shares(rates, None) == []


def test_no_round_has_the_prompts_of_another():
    """Nor those of the warm-up: what is found in the cache is not measured."""
    from benchmarks.contest import generator_of

    assert len({tuple(generator_of(turn).sample(range(9999), 40)) for turn in range(-1, 9)}) == 10


def test_a_contestant_that_says_nothing_is_killed():
    """An unattended run ends."""
    began = time.monotonic()
    with Worker("mute", [sys.executable, "-c", "import time; time.sleep(600)"], patience=0.3) as worker:
        with pytest.raises(ContestantFailed, match="did not answer within"):
            worker.wait_until_loaded()
        assert worker.process.poll() is not None
    assert time.monotonic() - began < 30


def test_a_latecomer_is_sent_off_once_all_others_run():
    """Not before, or it would not wait behind anybody; and its time runs from then on."""
    watch = Stopwatch([[1], [2], [3]], 8)
    sent: list[int] = []
    late = Latecomer(watch, lambda: sent.append(2))
    for _ in range(Latecomer.AFTER):
        late.look()
        assert not sent
        watch.step({0: 1, 1: 1})
    late.look()
    assert sent == [2]
    assert late.measured() == {}
    watch.step({0: 1, 1: 1, 2: 1})
    late.look()
    assert late.measured()["late_seconds"] >= 0
    assert Latecomer(watch, None).measured() == {}


def test_a_process_that_fails_takes_only_its_own_out_of_the_contest():
    """Whether it cannot be started, dies, or answers what is none; the others go on, and the reason is kept."""
    from benchmarks.contest import _Contest

    good = "import sys; print('{}', flush=True); [print('{\"decode\": 1}', flush=True) for _ in sys.stdin]"
    scripts = {"good": good, "dead": "import sys; sys.exit('no luck')", "odd": good}
    contest = _Contest(
        [Contestant(name, name) for name in scripts],
        commands={name: [sys.executable, "-c", script] for name, script in scripts.items()},
    )
    heard: list[float] = []
    for name, field in (("good", "decode"), ("dead", "decode"), ("odd", "no_such"), ("good", "decode")):
        contest.have(name, lambda worker, field=field: heard.append(worker.ask({})[field]))
    assert heard == [1, 1]
    assert [one.name for one in contest.alive] == ["good"]
    assert contest.left_out["dead"] == "failed: dead ended with status 1: … no luck"
    assert contest.left_out.keys() == {"dead", "odd"}
    assert contest.peaks["good"] > 1 << 20


def test_a_report_of_everybody_can_be_written(tmp_path: Path):
    """Every phase and every contestant has a title, a unit and a colour, also where somebody was left out."""
    from benchmarks.machine import describe
    from benchmarks.report import Report

    phases = ("decode", "prefill", "arrive", "late", "flow", "beside_all", "agreement", "peak", "adapter_memory")
    rates = [
        Rate(phase, shape, one.name, (1.0 + n, 2.0 + n))
        for phase in phases
        for shape in ("1 stream", "32 streams")
        for n, one in enumerate(contestants())
    ]
    limits = {"GFLOP/s, f32": 200.0, "GFLOP/s, bf16": 400.0, "GB/s": 25.0}
    rates += shares(rates, limits)
    about = describe() | {"threads": 2, "limits": limits, "adapters": "by the runtime"}
    report = Report("contest", "All", about, rates, judge(rates), left_out={"somebody": "not here: why"})
    report.write(tmp_path)
    written = (tmp_path / "contest.md").read_text()
    assert "- Not measured: somebody: not here: why" in written
    assert f"{ours('f32')} / {VLLM}" in written
    assert "≥ 3.6" in written
    assert "≥ 4.2" in written
    assert json.loads((tmp_path / "contest.json").read_text())["left_out"]
    assert (tmp_path / "contest.svg").stat().st_size > 10_000
