"""Parts of training that need no process: prompts, scores, checkpoints, settings, packing."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interlace.errors import ConfigError
from interlace.tuning.endings import check_room, disk_full, ending_of
from interlace.tuning.energy import GPUS, MOST_WATTS, PROCESSORS, Meter, read_gpu_energy, read_packages, with_earlier
from interlace.tuning.folder import RunFolder, TuningError, is_sealed, seal
from interlace.tuning.picture import draw
from interlace.tuning.prompts import NO_LOSS, CannotRender, Row, row_of
from interlace.tuning.scores import Known, change, out_of_patience, score, wilson
from interlace.tuning.settings import TuneSettings, read_run, read_settings, settings_help, told
from tests.support.served import patiently

ROOT = Path(__file__).parents[2]
GIVEN = {"base": "b", "data": "d.jsonl", "name": "n"}

# --- prompts -----------------------------------------------------------------------------------------------------


class Letters:
    """A tokenizer of single letters, with ChatML's template in small: `[u]question.[a]answer.`"""

    def __init__(self, *, forgets: bool = False) -> None:
        self.all_special_tokens = ["["]
        self._forgets = forgets

    def apply_chat_template(self, conversation, *, tokenize, add_generation_prompt):
        """As transformers' does."""
        assert not tokenize
        turns = conversation[-2:] if self._forgets else conversation
        text = "".join(f"[{turn['role'][0]}]{turn['content']}.\n" for turn in turns)
        return text + "[a]" if add_generation_prompt else text

    def __call__(self, text, **options):
        """One token a letter."""
        assert options == {"add_special_tokens": False, "return_offsets_mapping": True}
        return {
            "input_ids": [ord(letter) for letter in text],
            "offset_mapping": [(place, place + 1) for place in range(len(text))],
        }


def _turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]


def test_only_answers_and_their_ends_are_learnt() -> None:
    """Of a conversation with two answers, both with the mark that ends them, and nothing of questions or of the
    template; else a model learns to ask, or never to stop."""
    row = row_of(_turns("q1", "a1", "q2", "a2"), Letters(), frozenset("["))
    assert "".join(chr(each) for each in row.input_ids) == "[u]q1.\n[a]a1.\n[u]q2.\n[a]a2.\n"
    assert "".join(chr(each) for each in row.labels if each != NO_LOSS) == "a1.a2."
    assert row.learnt == 6


def test_a_control_token_in_a_text_is_refused_with_its_place() -> None:
    """What a text says must not steer the base, in training as little as in serving."""
    with pytest.raises(CannotRender, match=r"messages\[2\]\.content"):
        row_of(_turns("q", "a", "q[", "a"), Letters(), frozenset("["))


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    """What would be learnt is not what would be asked."""
    with pytest.raises(CannotRender, match="one question and one answer"):
        row_of(_turns("q1", "a1", "q2", "a2"), Letters(forgets=True), frozenset())


# --- scores ------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_tokens() -> None:
    """The loss weighs each token the same, its interval holds it, and a change in pairs is exact."""
    before = [Known(3.0 * tokens, tokens, exact=False) for tokens in range(1, 40)]
    after = [Known(one.nats - one.tokens, one.tokens, exact=one.tokens > 20) for one in before]
    said = score(after)
    assert said.loss.value == pytest.approx(2.0)
    assert said.loss.low <= said.loss.value <= said.loss.high
    assert said.exact_match.value == pytest.approx(19 / 39)
    assert (said.examples, said.tokens) == (39, sum(range(1, 40)))
    moved = change(before, after)
    assert (moved.value, moved.low, moved.high) == pytest.approx((-1.0, -1.0, -1.0))


def test_many_examples_take_no_more_memory_than_few() -> None:
    """All draws at once, of the tens of thousands of examples that may be held out, would end a run for want of memory
    after all is learnt. And one after the other they are the same draws, so figures stay comparable."""
    many = [Known(float(number % 7), 1 + number % 3, exact=True) for number in range(5000)]
    tracemalloc.start()
    said = score(many)
    assert change(many, many).high == 0
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 << 20  # at once: 80 MB for the numbers alone
    draws = np.random.default_rng(0).integers(0, 5000, (2000, 5000))
    nats, tokens = (np.array([getattr(one, name) for one in many])[draws].sum(axis=1) for name in ("nats", "tokens"))
    assert (said.loss.low, said.loss.high) == pytest.approx(tuple(np.percentile(nats / tokens, (2.5, 97.5))), abs=1e-12)


def test_patience_counts_from_the_best_look() -> None:
    """Three looks in a row without a better one end a run; a better one begins the count anew; 0 never ends it. What
    else is in the log says nothing."""
    history = [{"loss": 9.0}, *({"eval_loss": loss} for loss in (3.0, 2.0, 2.5, 2.0)), {"loss": 1.0}]
    assert not out_of_patience(history, 3)
    assert out_of_patience([*history, {"eval_loss": 2.1}], 3)
    assert not out_of_patience([*history, {"eval_loss": 1.9}], 3)
    assert not out_of_patience([*history, {"eval_loss": 2.1}], 0)
    assert not out_of_patience([], 3)


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0)]
)
def test_wilson_is_as_published(hits: int, of: int, low: float, high: float) -> None:
    """Bounds from the formula's own tables; at the ends it must not pass 0 or 1."""
    assert (wilson(hits, of).low, wilson(hits, of).high) == pytest.approx((low, high), abs=1e-4)


# --- checkpoints -------------------------------------------------------------------------------------------------


def _checkpoint(folder: RunFolder, step: int, *, sealed: bool) -> Path:
    place = folder.checkpoints / f"checkpoint-{step}"
    place.mkdir(parents=True)
    (place / "weights").write_bytes(os.urandom(1000))
    if sealed:
        seal(place)
    return place


def test_only_whole_checkpoints_count(tmp_path: Path) -> None:
    """One that was cut off while it was saved, or changed since, is removed, and the last sound one is taken."""
    folder = RunFolder(tmp_path, "r")
    good = _checkpoint(folder, 2, sealed=True)
    changed = _checkpoint(folder, 9, sealed=True)
    (changed / "weights").write_bytes(b"other")
    cut_off = _checkpoint(folder, 12, sealed=False)
    assert is_sealed(good)
    assert folder.last_sealed() == good
    assert not changed.exists()
    assert not cut_off.exists()


def test_a_name_is_one_runs_alone(tmp_path: Path) -> None:
    """A second holder is refused; after a crash of the first, and only then, it is let in."""
    first, second = RunFolder(tmp_path, "r"), RunFolder(tmp_path, "r")
    with first.locked(), pytest.raises(TuningError, match="is going on"), second.locked():
        pass
    with RunFolder(tmp_path, "r").locked():
        pass


def test_another_run_cannot_go_on_here(tmp_path: Path) -> None:
    """What differs is named; `fresh` alone makes room, and removes the other's checkpoints."""
    folder = RunFolder(tmp_path, "r")
    folder.claim({"settings": {"rank": 1, "seed": 1}}, fresh=False)
    _checkpoint(folder, 1, sealed=True)
    folder.claim({"settings": {"rank": 1, "seed": 1}}, fresh=False)
    with pytest.raises(TuningError, match="differs in rank"):
        folder.claim({"settings": {"rank": 2, "seed": 1}}, fresh=False)
    assert folder.last_sealed() is not None
    folder.claim({"settings": {"rank": 2, "seed": 1}}, fresh=True)
    assert folder.last_sealed() is None


# --- endings -----------------------------------------------------------------------------------------------------


def test_errors_that_people_can_mend_are_told_in_words(tmp_path: Path) -> None:
    """Memory and disk, as Python, torch and safetensors say it; what is none of them stays a fault of ours."""
    said = {
        "out_of_memory": [
            MemoryError(),
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."),
            RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        ],
        "disk_full": [
            OSError(28, "No space left on device"),
            RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/1: file write failed"),
            Exception("I/O error: No space left on device (os error 28)"),
        ],
    }  # fmt: skip
    for kind, errors in said.items():
        for error in errors:
            ending = ending_of(error, tmp_path, TuneSettings())
            assert ending is not None
            assert ending.kind == kind
            assert "last good checkpoint is kept" in ending.message
    assert ending_of(KeyError("x"), tmp_path, TuneSettings()) is None


@pytest.mark.parametrize(
    ("said", "rows", "words", "never"),
    [
        ({}, 1, ["max_tokens (now 512)", "rank (now 16)"], ["rows_at_once", "batch", "--method"]),
        ({}, 8, ["rows_at_once (now 8;", "rank (now 16)"], ["batch", "--method"]),
        ({"method": "full"}, 8, ["rows_at_once (now 8;", "--method lora or --private"], ["rank (", "batch"]),
        ({"method": "full", "private": "blocks:4-5"}, 1, ["blocks (now blocks:4-5)", "--method lora"], ["rank ("]),
        ({"task": "classify", "method": "full", "batch": 16}, 16, ["batch (now 16;", "lora"], ["rows_at_once", "rank"]),
        ({"task": "classify", "batch": 16}, 16, ["batch (now 16;", "rank (now 16)"], ["rows_at_once", "--method"]),
    ],
)
def test_want_of_memory_is_told_with_what_takes_less(
    tmp_path: Path, said: dict[str, Any], rows: int, words: list[str], never: list[str]
) -> None:
    """What a person then changes must be something that this run has: a classifier computes all of its share at once,
    whatever rows_at_once says, and whole weights have no rank."""
    ending = ending_of(MemoryError(), tmp_path, TuneSettings(**said), rows)
    assert ending is not None
    assert [each for each in words if each not in ending.message] == []
    assert [each for each in never if each in ending.message] == []


def test_an_operation_without_one_order_is_told_with_a_mend(tmp_path: Path) -> None:
    """As torch says it on a GPU; the person would hear of a switch that is not theirs to turn."""
    error = RuntimeError(
        "cumsum_cuda_kernel does not have a deterministic implementation, but you set "
        "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation."
    )
    ending = ending_of(error, tmp_path, TuneSettings())
    assert ending is not None
    assert ending.kind == "not_deterministic"
    assert "cumsum_cuda_kernel cannot" in ending.message
    assert "CUDA_VISIBLE_DEVICES=" in ending.message
    cublas = "Deterministic behavior was enabled, but this operation is not deterministic because it uses CuBLAS"
    assert "this operation cannot" in getattr(ending_of(RuntimeError(cublas), tmp_path, TuneSettings()), "message", "")


def test_a_disk_without_room_is_told_before_a_checkpoint_is_begun(tmp_path: Path) -> None:
    """Both numbers, so that a person knows how much to clear."""
    check_room(tmp_path, 1)
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(type(disk_full(tmp_path))) as caught:
        check_room(tmp_path, free)
    assert "make room" in caught.value.message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk of its own")
def test_a_really_full_disk_ends_in_words(tmp_path: Path) -> None:
    """What the system says when a file does not fit is understood."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    try:
        with pytest.raises(OSError, match="No space") as caught:
            (place / "checkpoint").write_bytes(b"x" * (1 << 20))
        ending = ending_of(caught.value, place, TuneSettings())
        assert ending is not None
        assert ending.kind == "disk_full"
    finally:
        subprocess.run(["umount", str(place)], check=True)


# --- settings ----------------------------------------------------------------------------------------------------


def test_a_file_of_settings_is_read_and_the_command_line_beats_it(tmp_path: Path) -> None:
    """Paths of the file are relative to it; what neither says is as documented."""
    file = tmp_path / "tune.yaml"
    file.write_text("base: ./b\ndata: d.jsonl\nname: n\nepochs: 2\npacking: false\n")
    settings = read_settings(file, {"epochs": 5.0, "seed": None})
    assert settings == TuneSettings(
        base=str(tmp_path / "b"), data=str(tmp_path / "d.jsonl"), name="n", epochs=5.0, packing=False
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch: 3", "tune.yaml:1: epoch: is no setting. Did you mean epochs?"),
        ("rank: 8\nrank: 9", "tune.yaml:2: rank: is there twice"),
        ("\nbatch: many", "tune.yaml:2: batch: is not a whole number but 'many'"),
        ("batch: 0", "from 1 to 4096"),
        ("learning_rate: .nan", "learning_rate: is not a number"),
        ("learning_rate: nan", "from 0 to 1"),
        ("packing: perhaps", "true or false"),
        ("rank: [1]", "tune.yaml:1: rank: is not a whole number"),
        ("\nprecision: fp16", "tune.yaml:2: precision: is 'fp16'. Write f32, bf16 or auto"),
        ("precision: auto\nmachines: 2", "tune.yaml:1: precision: is auto, but all machines must use the same"),
        ("private: blocks:3", "tune.yaml:1: private: is 'blocks:3'. Write blocks:24-29"),
        ("task: clasify", "Write chat or classify"),
        ("labels: a, b", "labels: are for task classify"),
        ("{task: classify, labels: [a, b, a]}", "one twice"),
        ("{task: classify, labels: a}", "Name two at least"),
        ("{task: classify, labels: [{a: b}]}", "labels: is not text"),
        ("{task: classify, private: 'blocks:0-1+head'}", "Write the blocks alone"),
        ("- epochs", "write lines such as"),
        ("epochs: {", "this is no YAML"),
        ("name: a:b", "cannot be a name"),
        ("owner: ''", "tune.yaml:1: owner: is empty. Name an organisation; everybody opens the result to all."),
        ("base: ''", "tune.yaml:1: base: is empty. The checkpoint to train on"),
        ("\nname:", "tune.yaml:2: name: is empty. Write text, or leave it out"),
        ("lr: 0.1", "tune.yaml:1: lr: is no setting. Did you mean learning_rate?"),
        ("lora_r: 8", "Did you mean rank?"),
        ("Learning-Rate: 8", "Did you mean learning_rate?"),
        ("seed: -1", "tune.yaml:1: seed: is -1. Write a number from 0 to 2147483648"),
        ("seed: 1.5", "seed: is not a whole number but '1.5'"),
        ("licence: " + "x" * 201, "tune.yaml:1: licence: has 201 characters, and can have 200. Shorten it"),
        ("source: " + "x" * 2001, "can have 2,000"),
        ("source: \"a\\0b\"", "tune.yaml:1: source: has a NUL character in it"),
        ("? [a, b]\n: 1", "tune.yaml:1: a setting's name is one word"),
        ("epochs: 1\n---\nepochs: 2", "tune.yaml:2: this is no YAML: expected a single document in the stream"),
        ("epochs: 1\n\tbatch: 2", "tune.yaml:2: this is no YAML: "),
        ('{"messages": []}\n{"messages": []}', "Is it the data? Name those with --data"),
        ("private: blocks:0-1\nmethod: lora", "tune.yaml:1: private: is for method full, which makes a checkpoint"),
        ("held_out_split: test", "tune.yaml:1: held_out_split: is for a data set on the Hub"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_line_and_mend(tmp_path: Path, text: str, said: str) -> None:
    """Before anything is loaded; the person must not have to guess."""
    (tmp_path / "tune.yaml").write_text(text + "\n")
    given = {name: value for name, value in GIVEN.items() if not text.startswith(name)}
    with pytest.raises(ConfigError) as caught:
        read_settings(tmp_path / "tune.yaml", given)
    assert said.lower() in caught.value.message.lower()


def test_what_the_base_shows_of_a_setting_is_told_with_its_place(tmp_path: Path) -> None:
    """The training process knows no lines; the person has a file of fifty, and options that beat it."""
    file = tmp_path / "tune.yaml"
    file.write_text("epochs: 3\ntargets: [x]\nlauncher: {kind: ddp, processes: 2}\nmethod: full\n")
    _, said = read_run(file, GIVEN | {"seed": None, "method": "lora", "held_out_data": "h.jsonl"})
    for message, place in (
        ("targets: 'x' names no layer: there are none", f"{file}:2: targets"),
        ("processes: is 2", f"{file}:3: processes"),
        ("epochs: is 1", f"{file}:1: epochs"),
        ("method: is for whole weights", "--method"),
        ("held_out_data: h.jsonl: there is no such file", "--held-out"),
        ("private: are no blocks", "--private"),  # said nowhere: as it can be
        ("rank: is too large", f"{file}: rank"),
    ):
        assert told(message, said) == f"{place}: {message.partition(': ')[2]}"
        assert told(f"train.jsonl:7: no.\n{message}", said).endswith(f"\n{place}: {message.partition(': ')[2]}")
    for unplaced in ("train.jsonl:7: messages: has 33 tokens", "The base has no end."):
        assert told(unplaced, said) == unplaced


def test_what_must_be_said_is_asked_for() -> None:
    """All that is missing, at once."""
    with pytest.raises(ConfigError) as caught:
        read_settings(None, {})
    assert [line.split(":")[0] for line in caught.value.message.splitlines()] == ["--base", "--data", "--name"]


def test_every_setting_is_in_the_guide() -> None:
    """Name, default and meaning of each stand in docs/how-to/tune.md as the code has them."""
    text = (ROOT / "docs" / "how-to" / "tune.md").read_text()
    missing = [
        row
        for row in (f"| `{name}` | {default} | {doc} |" for name, default, doc in settings_help())
        if row not in text
    ]
    assert missing == []


# --- the rest ----------------------------------------------------------------------------------------------------


def _packages(root: Path, **micro: int) -> None:
    """Counters of `p0` and `p1`, that begin anew after 65 kJ; and what must not be counted again."""
    parts = {"intel-rapl:0": ("package-0", micro["p0"]), "intel-rapl:1": ("package-1", micro["p1"]),
             "intel-rapl:0:0": ("core", 9), "intel-rapl:2": ("psys", 9)}  # fmt: skip
    for name, (what, value) in parts.items():
        (root / name).mkdir(exist_ok=True)
        for file, text in (("name", what), ("energy_uj", value), ("max_energy_range_uj", 65_000_000_000)):
            (root / name / file).write_text(f"{text}\n")


def test_energy_is_counted_through_every_beginning_anew(tmp_path: Path) -> None:
    """A counter of a large processor begins anew every few minutes: from beginning to end alone, hours would have used
    what minutes do. The sum is over packages, not over their parts again; nothing where there is no counter."""
    assert Meter(root=tmp_path).used() == {}
    now = 0.0
    _packages(tmp_path, p0=64_000_000_000, p1=0)
    meter = Meter(root=tmp_path, clock=lambda: now)
    for turn in range(1, 11):
        now += 60.0
        _packages(tmp_path, p0=(64 + 30 * turn) % 65 * 10**9, p1=turn * 10**9)
        meter.look()
    assert meter.used() == {PROCESSORS: pytest.approx(10 * 30_000 + 10 * 1000)}
    assert len(read_packages(tmp_path)) == 2


def test_energy_that_cannot_be_told_is_left_out(tmp_path: Path) -> None:
    """After so long without a look that a counter may have begun anew twice, or where one has gone, a figure would be
    too low without a word."""
    now = 0.0
    _packages(tmp_path, p0=1, p1=1)
    slow, robbed = (Meter(root=tmp_path, clock=lambda: now) for _ in range(2))
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert robbed.used() == {}
    _packages(tmp_path, p0=2, p1=2)
    assert robbed.used() == {}
    now = 65_000 / MOST_WATTS
    assert slow.used() == {}
    now += 1
    assert slow.used() == {}


def test_a_meter_looks_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps, scoring and answers may each take longer than a counter does."""
    monkeypatch.setattr("interlace.tuning.energy.LOOK_SECONDS", 0.01)
    _packages(tmp_path, p0=1, p1=0)
    looks: list[float] = []

    def clock() -> float:
        looks.append(0.0)
        return 0.0

    Meter(root=tmp_path, clock=clock).watch()
    patiently(lambda: len(looks) > 3)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()  # which ends it


def test_energy_adds_up_over_the_parts_of_a_run() -> None:
    """A run that went on would else have used only what its last part did; and what one part could not tell would be
    missing without a word."""
    assert with_earlier({GPUS: 40.0}, {GPUS: 60.0, PROCESSORS: 5.0}) == {GPUS: 100.0}
    assert with_earlier({GPUS: 40.0}, {}) == {}
    assert with_earlier(None, {GPUS: 60.0}) == {GPUS: 60.0}
    assert read_gpu_energy([]) is None
    assert read_gpu_energy(["GPU-0"], library="libnone.so") is None


def test_the_picture_has_both_curves() -> None:
    """Also of a single point, and whatever the name is."""
    assert draw([(1, 2.0), (2, 1.0)], [(2, 1.5)], "a<b").count("<polyline") == 2
    assert "a&lt;b" in draw([(1, math.pi)], [], "a<b")


# --- with torch --------------------------------------------------------------------------------------------------


def test_an_adapter_changes_layers_that_are_there(tmp_path: Path) -> None:
    """One of several names that is mistyped would be left out without a word; the head or the embeddings would be
    learnt for hours, and could not be served. What there is, is told, in each family's words."""
    pytest.importorskip("torch", reason="the training parts are not installed")
    import transformers

    from interlace.tuning.endings import Ending
    from interlace.tuning.slices import targets_of
    from tests.support.encoders import tiny_encoder
    from tests.support.tiny import tiny_llama_safetensors

    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama_safetensors(tmp_path / "b"))
    assert targets_of(model, "all-linear") == "all-linear"
    assert targets_of(model, "q_proj, self_attn.v_proj") == ["q_proj", "self_attn.v_proj"]
    for wrong in ("foo", "q_proj,foo", "lm_head", "embed_tokens", "q_proj,", "all-linear,q_proj", "proj"):
        with pytest.raises(Ending, match=r"There are: down_proj, gate_proj, k_proj, .*, v_proj. Write some") as caught:
            targets_of(model, wrong)
        assert "'q_proj" not in caught.value.message, wrong
    tiny_encoder("bert", "Model", tmp_path / "e")
    encoder = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "e")
    with pytest.raises(Ending, match=r"There are: dense, key, query, value. Write"):
        targets_of(encoder, "classifier")


def test_rows_laid_one_behind_the_other_do_not_see_each_other(tmp_path: Path) -> None:
    """The loss of an example is the same alone and packed with others, to float32's rounding; else packing would teach
    answers to other questions."""
    torch = pytest.importorskip("torch", reason="the training parts are not installed")
    pytest.importorskip("trl", reason="the training parts are not installed")
    import transformers
    from trl.trainer.utils import add_fused_lm_head

    from interlace.tuning.trainer import known_of
    from tests.support.tiny import VOCABULARY, tiny_llama_safetensors

    model = transformers.AutoModelForCausalLM.from_pretrained(
        tiny_llama_safetensors(tmp_path / "b"), dtype=torch.float32
    )
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    rows = []
    for number in range(5):
        ids = [(7 * number + 3 * place) % VOCABULARY for place in range(6 + number)]
        rows.append(Row(ids, [NO_LOSS, NO_LOSS, *ids[2:]]))
    packed = known_of(model, rows, 1000, "cpu")
    alone = [known_of(model, [row], 1000, "cpu")[0] for row in rows]
    assert [one.nats for one in packed] == pytest.approx([one.nats for one in alone], rel=1e-5)
    for row, known in zip(rows, alone, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([row.input_ids])).logits[0, :-1]
        labels = torch.tensor(row.labels[1:])
        wanted = torch.nn.functional.cross_entropy(logits, labels, ignore_index=NO_LOSS, reduction="sum")
        assert known.nats == pytest.approx(float(wanted), rel=1e-5)
        assert known.tokens == int((labels != NO_LOSS).sum())
        right = (logits.argmax(-1) == labels) | (labels == NO_LOSS)
        assert known.exact == bool(right.all())
