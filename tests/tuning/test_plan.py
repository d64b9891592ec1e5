"""The plan of a training agrees with figures that others have published, and with what each way of training needs."""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.money import DOLLAR, Nanos
from interlace.tuning.commands import _hardware
from interlace.tuning.hardware import Device, Hardware, Price, known_hardware, this_gpu, this_machine
from interlace.tuning.memory import PROCESS_BYTES, STAGES, Job, memory_of
from interlace.tuning.plan import Plan, flop, plan
from interlace.tuning.plan_table import beside, plan_table
from interlace.tuning.settings import TuneSettings
from interlace.tuning.sizes import Learnt, ModelSize, blocks, full, lora

GIB = 1 << 30
GPT3 = ModelSize(175 * 10**9, 0)
T5 = ModelSize(2851 * 10**6, 32 * 10**6)
SHAPES = {
    "model.embed_tokens.weight": (100, 8),
    "model.norm.weight": (8,),
    **{f"model.layers.{i}.self_attn.q_proj.weight": (8, 8) for i in range(4)},
    **{f"model.layers.{i}.mlp.up_proj.weight": (16, 8) for i in range(4)},
    **{f"model.layers.{i}.input_layernorm.weight": (8,) for i in range(4)},
}
LAYER = 8 * 8 + 16 * 8 + 8
SMALL = ModelSize(100 * 8 + 8 + 4 * LAYER, 800, layers=4, hidden=8, heads=2, vocabulary=100)


def test_gpt_3_costs_what_was_published() -> None:
    """175 B parameters on 300 B tokens are 3.15e23 FLOP (Brown et al., arXiv:2005.14165, table D.1: 3.14e23), 355
    years of a V100 and 4.6 million dollars (Lambda, 2020), with 3.14e23 and years of 365 days. A factor that is wrong
    would be seen here first."""
    planned = plan(GPT3, full(GPT3), Job(300 * 10**9), [known_hardware()["v100"]])
    assert planned.flop == 315 * 10**21
    (estimate,) = planned.estimates
    assert estimate.hours_low == estimate.hours_high
    assert estimate.hours_low / (24 * 365) == pytest.approx(355, rel=0.01)
    assert estimate.nanos_low is not None
    assert estimate.nanos_low / DOLLAR == pytest.approx(4.6e6, rel=0.02)
    assert estimate.stage is None  # 3.3 TB of states fit no V100


PUBLISHED = {
    # total parameters, largest layer, devices, stage: GiB on each device
    "t5-3b, ZeRO-2": (2851e6, 32e6, 8, 2, 15.93),
    "t5-3b, ZeRO-3": (2851e6, 32e6, 8, 3, 6.10),
    "t5-large, ZeRO-3": (737.67e6, 32.90e6, 4, 3, 3291 / 1024),
}


@pytest.mark.parametrize("case", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_memory_is_what_deepspeed_says(case: tuple[float, float, int, int, float]) -> None:
    """A plan that says less than DeepSpeed's own table (its documentation, "Memory Requirements") would send people to
    devices that are too small."""
    total, largest, devices, stage, gib = case
    size = ModelSize(int(total), int(largest))
    found = memory_of(size, full(size), Job(1, devices=devices), stage)  # type: ignore[arg-type]
    assert found.bytes / GIB == pytest.approx(gib, abs=0.02)
    assert found.activations_bytes == 0


def test_what_is_frozen_needs_no_gradients() -> None:
    """An adapter costs 4 FLOP for each frozen parameter and token and 6 for each of its own; a slice at the end costs
    2 below itself. A plan of 6ND for all of them would be half too dear."""
    adapter = lora(SMALL, SHAPES, rank=2)
    assert adapter.trained == 4 * 2 * (8 + 8 + 16 + 8)
    assert flop(SMALL, adapter, Job(10)) == 10 * (4 * SMALL.parameters + 6 * adapter.trained)
    assert flop(SMALL, full(SMALL), Job(10)) == 10 * 6 * SMALL.parameters
    assert flop(SMALL, full(SMALL), Job(10, checkpointing=True)) == 10 * 8 * SMALL.parameters
    top = blocks(SMALL, SHAPES, 3, 3)
    assert (top.trained, top.added) == (LAYER, 0)
    assert flop(SMALL, top, Job(10)) == 10 * (2 * SMALL.parameters + 2 * (LAYER + 808) + 2 * LAYER)
    middle = blocks(SMALL, SHAPES, 1, 2)
    assert (middle.trained, middle.passed) == (2 * LAYER, 3 * LAYER + 808)
    headed = blocks(SMALL, SHAPES, 3, 3, head=True)
    assert (headed.trained, headed.added) == (LAYER + 808, 800)  # a tied head becomes a matrix of its own
    whole = SMALL.parameters + 800  # the new head is passed once, and no more through the embeddings
    assert flop(SMALL, headed, Job(10)) == 10 * 2 * (whole + (LAYER + 8 + 800) + headed.trained)
    untied = blocks(SMALL, {**SHAPES, "lm_head.weight": (100, 8)}, 3, 3, head=True)
    assert untied.added == 0


def test_targets_choose_the_matrices_of_an_adapter() -> None:
    """Targets that match nothing would train nothing, for hours; embeddings are no layers."""
    assert lora(SMALL, SHAPES, 1, "q_proj").trained == 4 * 16
    assert lora(SMALL, SHAPES, 1, ["q_proj", "up_proj"]).trained == lora(SMALL, SHAPES, 1).trained
    assert lora(SMALL, SHAPES, 1, "self_attn.q_proj").trained == 4 * 16
    for wrong in ("embed_tokens", "input_layernorm", "proj", ""):
        for targets in (wrong, ["q_proj", wrong]):
            with pytest.raises(ValueError, match=rf"^'{wrong}' names no layer .* There are: q_proj, up_proj. Write"):
                lora(SMALL, SHAPES, 1, targets)


SIZES = st.builds(ModelSize, st.integers(10**6, 10**12), st.integers(1, 10**6))


@given(
    size=SIZES, share=st.floats(0.0001, 1), devices=st.integers(1, 4096), precision=st.sampled_from(["mixed", "f32"])
)
def test_more_sharing_never_takes_more(size: ModelSize, share: float, devices: int, precision: str) -> None:
    """A later stage or one more device takes no more memory, but for the one layer that ZeRO-3 gathers; and f32 on one
    device takes what its four numbers take."""
    trained = max(1, int(size.parameters * share))
    learnt = Learnt("blocks", trained, 0, size.parameters)

    def bytes_on(count: int, stage: int) -> int:
        return memory_of(size, learnt, Job(1, devices=count, precision=precision), stage).bytes  # type: ignore[arg-type]

    gathered = 8 * size.largest_layer
    for stage in STAGES:
        assert bytes_on(devices + 1, stage) <= bytes_on(devices, stage)
    assert bytes_on(devices, 0) >= bytes_on(devices, 1) >= bytes_on(devices, 2) >= bytes_on(devices, 3) - gathered
    if precision == "f32":
        assert bytes_on(1, 0) == 4 * size.parameters + 12 * trained


def test_an_adapter_takes_less_than_a_full_training() -> None:
    """That is what it is for: weights of 16 bits, and gradients and Adam of the adapter alone."""
    adapter = lora(SMALL, SHAPES, rank=2)
    assert memory_of(SMALL, adapter, Job(1), 0).bytes == 2 * SMALL.parameters + 20 * adapter.trained
    assert memory_of(SMALL, full(SMALL), Job(1), 0).bytes == 20 * SMALL.parameters


def test_activations_grow_with_rows_and_shrink_by_computing_twice() -> None:
    """Without them, a plan says of long rows that they fit."""
    one = memory_of(SMALL, full(SMALL), Job(1, row_tokens=64, rows=1), 0).activations_bytes
    two = memory_of(SMALL, full(SMALL), Job(1, row_tokens=64, rows=2), 0).activations_bytes
    again = memory_of(SMALL, full(SMALL), Job(1, row_tokens=64, rows=2, checkpointing=True), 0).activations_bytes
    assert two == pytest.approx(2 * one, abs=2)
    assert 0 < again < two
    # Korthikanti et al., arXiv:2205.05198, equation 2: s b h L (34 + 5 a s / h); and the logits.
    assert one == 64 * 8 * 4 * (34 + 5 * 2 * 64 // 8) + 64 * 100 * 10


def test_what_is_shared_out_is_scored_whole() -> None:
    """Before it is shared out, and by one process at the end, a device has the base whole: a plan without that says of
    eight GPUs that they hold a model which none of them can score, after hours of learning."""
    size = _llama(2048, 16, 8192, keys=512)
    job = Job(1, row_tokens=64, rows=1, devices=8, precision="f32", fused=True, scored=True)
    shared = memory_of(size, full(size), job, 3)
    assert shared.states_bytes + shared.activations_bytes < 4 * size.parameters < shared.scoring_bytes == shared.bytes
    alone = memory_of(size, full(size), dataclasses.replace(job, devices=1), 0)
    assert alone.bytes == alone.states_bytes + alone.activations_bytes > alone.scoring_bytes
    small = Hardware("small", "small", round(shared.bytes / 0.9) - 1, 1e12, 2e12)
    assert plan(size, full(size), job, [small]).estimates[0].stage is None
    assert "or to score" in plan_table(plan(size, full(size), job))


def test_rounding_is_counted_where_it_is_done() -> None:
    """An adapter's process alone has its frozen matrices in 16 bits, and the pages of a file that they were read from;
    all weights that are learnt have a rounded copy beside them. Each is up to half of a small model."""
    whole = dataclasses.replace(SMALL, matrices=4 * (8 * 8 + 16 * 8) + 800, head=800)
    adapter, inner = lora(whole, SHAPES, rank=2), 4 * (8 * 8 + 16 * 8)
    plain = Job(1, devices=1, precision="f32")

    def more(learnt: Learnt, **changed: bool | int) -> int:
        rounded = memory_of(whole, learnt, dataclasses.replace(plain, autocast=True, **changed), 0)
        return rounded.states_bytes - memory_of(whole, learnt, dataclasses.replace(plain, **changed), 0).states_bytes

    assert more(adapter, rounds=True) == -2 * inner + 2 * 800
    assert more(adapter, rounds=True, mapped=True) == 2 * inner + 2 * 800
    assert more(adapter) == more(full(whole)) == 2 * (inner + 800)
    assert more(blocks(whole, SHAPES, 3, 3)) == 2 * (LAYER + 808), "nothing is kept below the slice"


def test_what_a_run_keeps_follows_its_rows_and_its_layers() -> None:
    """Rows four times as long, layers that nothing runs back through, answers that are a tenth of the text: each is
    most of the memory of some run."""
    job = Job(1, row_tokens=64, rows=1, precision="f32", fused=True)
    whole, top = full(SMALL), blocks(SMALL, SHAPES, 3, 3)

    def kept(learnt: Learnt, **changed: float) -> int:
        return memory_of(SMALL, learnt, dataclasses.replace(job, **changed), 0).activations_bytes

    assert kept(whole, row_tokens=256) > 4 * kept(whole), "attention has a mask, which grows with the square"
    head = 64 * 100 * 12
    assert (kept(top) - head) * 5 == (kept(whole) - head) * 2, "one layer of four, and one that is computed"
    assert kept(whole) - kept(whole, answers=0.1) == head - 7 * 100 * 12
    assert kept(lora(SMALL, SHAPES, 1)) < kept(whole) < kept(whole, dropout_bytes=4)
    assert kept(whole, row_tokens=1 << 22) == kept(whole, row_tokens=1 << 22, answers=0.5), "a head works in tiles"


def test_the_hardware_is_stated_with_date_and_source() -> None:
    """A price without a date is a rumour; a speed above the peak is none."""
    known = known_hardware()
    assert {"v100", "a100-80gb", "h100-sxm"} <= set(known)
    for one in known.values():
        assert one.prices
        assert all(dt.date(2020, 1, 1) <= price.date <= dt.date(2026, 11, 26) for price in one.prices)
        assert all(price.seller and price.source.startswith("https://") for price in one.prices)
        assert 0 < one.flop_per_second_low <= one.flop_per_second_high


F32_PEAKS = {"v100": 15.7, "t4": 8.1, "l4": 30.3, "l40s": 91.6, "a100-80gb": 19.5, "h100-sxm": 67, "h200": 67}


def test_float32_is_planned_with_the_speed_of_float32() -> None:
    """It is the default, and 4 to 16 times slower than 16 bits: with their speeds, a run that is planned for an hour
    would go on, and cost, until the next day. No plan may be faster than the maker's peak."""
    known = _hardware(TuneSettings(), Device("a GPU", GIB, 1e13))[1:]
    assert [one.name for one in known] == list(F32_PEAKS)
    for one in plan(GPT3, full(GPT3), Job(10**9), known).estimates:
        arithmetic = 6 * GPT3.parameters * 10**9
        assert 1.4 < one.hours_low * 3600 / (arithmetic / F32_PEAKS[one.hardware.name] / 1e12) < 1.5
        assert one.hardware.title.endswith("float32")
    rounded = _hardware(TuneSettings(precision="bf16"), Device("a GPU", GIB, 1e13))[1:]
    assert rounded == [one for name, one in known_hardware().items() if name not in ("v100", "t4")], "which have none"


@pytest.mark.parametrize(("tokens", "a_second"), [(128, 40.32), (128, 33.36), (512, 8.36), (512, 7.56)])
def test_float32_takes_what_was_published(tokens: int, a_second: float) -> None:
    """Sequences a second of BERT-Large on one V100 (NVIDIA, DeepLearningExamples, PyTorch/LanguageModeling/BERT, 2020):
    a range that leaves them out is none."""
    bert = ModelSize(335 * 10**6, 0)
    (estimate,) = plan(bert, full(bert), Job(10**6 * tokens), [known_hardware("f32")["v100"]]).estimates
    assert estimate.hours_low < 10**6 / a_second / 3600 < estimate.hours_high


def test_cost_is_rounded_up_and_never_nothing() -> None:
    """A run of a second costs something; and two devices for half the time cost the same."""
    h100 = known_hardware()["h100-sxm"]
    tiny = plan(SMALL, full(SMALL), Job(1), [h100]).estimates[0]
    assert tiny.nanos_low is not None
    assert tiny.nanos_low > 0
    cheap = Hardware("cheap", "cheap", GIB, 1e15, 1e15, (Price(Nanos(1), dt.date(2026, 1, 1), "nobody", "here"),))
    assert plan(SMALL, full(SMALL), Job(1), [cheap]).estimates[0].nanos_high == 1
    one, four = (plan(GPT3, full(GPT3), Job(10**9, devices=count), [h100]).estimates[0] for count in (1, 4))
    assert four.hours_low == pytest.approx(one.hours_low / 4)
    assert four.nanos_high == pytest.approx(one.nanos_high, rel=1e-6)


def _planned(devices: int = 8) -> Plan:
    job = Job(300 * 10**9, devices=devices)
    own = Hardware("here", "this machine", 4 * GIB, 1e12, 2e12)
    return plan(T5, full(T5), job, [known_hardware()["a100-80gb"], own])


def test_a_plan_is_told_in_full() -> None:
    """What the table leaves out is not known when the decision is made."""
    text = plan_table(_planned())
    assert "Trained     2.851 B of 2.851 B parameters (100.00%, full)" in text
    assert "5.13e+21 FLOP (6.00 x parameters x tokens)" in text
    assert [line.split()[0] for line in text.splitlines() if line.endswith(("15.93", "6.09"))] == ["1", "2", "3"]
    assert "one copy" in text
    assert "too large" in text
    assert "2026-03-10" in text
    assert "ZeRO-" not in plan_table(_planned(devices=1))


def test_a_run_is_shown_beside_its_plan() -> None:
    """A plan that nobody compares with the run goes on being wrong."""
    planned = _planned(devices=1)
    text = beside(planned, seconds=3600.0, memory_bytes=GIB, tokens=planned.job.tokens // 2)
    lines = [line.split() for line in text.splitlines()]
    low, high = (hours / 2 / 8760 for hours in (planned.estimates[1].hours_low, planned.estimates[1].hours_high))
    assert lines[1] == ["time", f"{low:.0f}", "years", "to", f"{high:.0f}", "years", "1", "h"]
    assert lines[2][-1] == f"{planned.flop / 2 / 3600 / 1e9:.3g}"
    assert lines[3][-1] == "1.00"
    assert "-" in beside(planned, seconds=1.0, hardware="elsewhere")


def test_a_gpu_waits_for_its_processor() -> None:
    """By arithmetic alone, a small model on a large GPU would be planned in a tenth of the time that it takes. Measured
    on an H100: 1.07 B parameters, 16 layers, 26 passes of 4,096 tokens in 12 s."""
    device = Device("NVIDIA H100 80GB HBM3", 80 * GIB, 7.7e14)
    gpu, here = this_gpu(device), Hardware("here", "this machine", 80 * GIB, 7.7e13, 3.85e14)
    size, adapter = _llama(2048, 16, 8192, keys=512), Learnt("lora", 11_272_192, 11_272_192, 1_073_800_000)
    job = Job(105_044, row_tokens=512, rows=8, precision="f32", autocast=True, fused=True, scored=True)
    adapted = dataclasses.replace(job, rounds=True, dropout_bytes=1)
    planned = plan(size, adapter, adapted, [gpu, here])
    on_gpu, alone = planned.estimates
    assert "NVIDIA H100" in on_gpu.hardware.title
    assert on_gpu.hours_low * 3600 < 11.9 < on_gpu.hours_high * 3600 < 20
    assert alone.hours_high < on_gpu.hours_high
    assert 11.57 < planned.memory[0].bytes / GIB < 1.2 * 11.57  # what was measured, and a spare
    small = _llama(576, 30, 1536, keys=192)
    small_adapter = Learnt("lora", 4_884_480, 4_884_480, small.parameters)
    for learnt, how, measured in ((small_adapter, adapted, 4.7), (full(small), job, 5.9)):
        assert 1 < memory_of(small, learnt, how, 0).bytes / GIB / measured < 1.2, learnt.method


def _llama(hidden: int, layers: int, feed_forward: int, *, keys: int) -> ModelSize:
    """One with SmolLM2's vocabulary, whose head is its embeddings."""
    inner, head = layers * (2 * hidden * (hidden + keys) + 3 * hidden * feed_forward), 49152 * hidden
    whole, norms = inner + head, (2 * layers + 1) * hidden
    return ModelSize(whole + norms, head, layers, hidden, hidden // 64, 49152, feed_forward, whole, head)


HOW_TO = (Path(__file__).parents[2] / "docs/how-to/tune.md").read_text(encoding="utf-8")
MEASURED = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in HOW_TO.splitlines()
    if re.fullmatch(r"\| .*(SmolLM2-135M|random weights), \w+ \|.*", line)
]


@pytest.mark.parametrize("row", MEASURED, ids=" ".join)
def test_the_memory_that_is_told_beside_the_measured_is_planned(row: list[str]) -> None:
    """The page's table is what the planner says, and within a fifth of what runs took: adapters, whole weights and
    slices, both precisions, short rows and long ones, a small model and a larger."""
    base, way, precision, tokens, planned, measured = row
    small = base.startswith("SmolLM2")
    size = _llama(576, 30, 1536, keys=192) if small else _llama(1024, 16, 2816, keys=256)
    adapter = 4_884_480 if small else 4_653_056
    learnt = {
        "adapter": Learnt("lora", adapter, adapter, size.parameters),
        "all weights": full(size),
        "`blocks:24-29`": Learnt("blocks", 21_240_576, 0, 21_240_576 + size.head + 576, 6),
    }[way]
    job = Job(
        1, row_tokens=int(tokens.replace(",", "")), rows=1, precision="f32", autocast=precision == "bf16",
        rounds=way == "adapter", mapped="safetensors" in base, answers=0.47, fused=True, scored=True,
        on_processors=True, process_bytes=PROCESS_BYTES,
    )  # fmt: skip
    assert memory_of(size, learnt, job, 0).bytes / GIB == pytest.approx(float(planned), abs=0.02)
    assert float(planned) == pytest.approx(float(measured), rel=0.2)


def test_every_way_of_learning_was_measured() -> None:
    """A table that nothing is read from would hold no plan to anything."""
    assert len(MEASURED) > 7
    for way in ("adapter", "all weights", "`blocks:24-29`"):
        assert {row[2] for row in MEASURED if row[1] == way} == {"f32", "bf16"}


def test_gpus_are_planned_with_the_rows_that_they_compute_at_once() -> None:
    """A plan made on a laptop would else say that a run fits a GPU on which it ends for want of memory."""
    here = Hardware("here", "this machine", 2 * GIB, 1e12, 2e12)
    rented = Hardware("rented", "rented", 2 * GIB, 1e14, 2e14, gpu=True)
    size = ModelSize(10**8, 10**7, layers=12, hidden=768, heads=12, vocabulary=50000)
    job = Job(10**6, row_tokens=512, rows=1, precision="f32", fused=True)
    learnt = Learnt("lora", 10**6, 10**6, size.parameters)
    both = plan(size, learnt, job, [here, rented], dataclasses.replace(job, rows=32))
    assert [one.stage for one in both.estimates] == [0, None]
    assert "A GPU computes 32 rows at once" in plan_table(both)
    apart = plan(size, learnt, dataclasses.replace(job, process_bytes=2 * GIB), [here, rented], job)
    assert [one.stage for one in apart.estimates] == [None, 0], "the libraries are in the machine's memory alone"
    assert apart.memory[0].bytes == 2 * GIB + apart.gpu_memory[0].bytes
    assert "A GPU takes" in plan_table(apart)
    same = plan(size, learnt, job, [here, rented], job)
    assert [one.stage for one in same.estimates] == [0, 0]
    assert "at once" not in plan_table(same)


def test_this_machine_is_measured() -> None:
    """A speed of nothing, or of a supercomputer, means the measurement is wrong."""
    here = this_machine()
    assert 1e8 < here.flop_per_second_low < here.flop_per_second_high < 1e15
    assert here.memory_bytes > GIB // 2
    assert here.prices == ()
