"""Parts of a decoder: what meets at a boundary computes what the whole does, and its states are transformers'."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interlace.engines.local import open_segment
from interlace.engines.local.runner import Run, Runner
from interlace.engines.local.segment import Piece, Segment
from interlace.errors import CheckpointError, ConfigError, ContextLengthExceeded, InvalidRequest, Overloaded
from interlace.models import DecoderArchitecture, read_architecture
from tests.support.encoders import tiny_encoder
from tests.support.families import VARIANTS, checkpoint, oracle
from tests.support.tiny import VOCABULARY

Array = np.ndarray[Any, Any]

RANDOM = np.random.default_rng(5)
TEXTS = [RANDOM.integers(3, VOCABULARY, length).tolist() for length in (75, 40, 1)]
# One of each kind of layer; how positions turn is the same code in a part, and `test_families` has them all by day.
BY_DAY = ("llama3", "llama-biased", "mistral", "qwen2-window", "qwen3", "smollm3", "gemma2", "gemma3-linear",
          "phi3-far", "gpt2-wide")  # fmt: skip
PREFILLED = (70, 33, 0)  # of each text; the rest comes one by one, as in decode


def opened(path: Path, begin: int | None = None, end: int | None = None, cache_bytes: int = 4 << 20) -> Segment:
    """A part at f32."""
    return open_segment(str(path), path.parent, begin, end, precision="f32", cache_bytes=cache_bytes, threads=1)


def steps() -> list[list[tuple[int, int, int]]]:
    """What is computed together, as (text, from, to): two prompts, then decode, a third sequence joining midway."""
    first = [(text, 0, past) for text, past in enumerate(PREFILLED) if past]
    return [first, *[[(0, at, at + 1), (1, at - 37, at - 36)] for at in (70, 71)], [(2, 0, 1), (0, 72, 73)]]


def through(parts: list[Segment]) -> list[list[Array]]:
    """Logits of every position of `steps`, one part after the other."""
    outputs = []
    for step in steps():
        values: list[Any] = [TEXTS[text][begin:end] for text, begin, end in step]
        for part in parts:
            pieces = [Piece(str(text), each) for (text, _, _), each in zip(step, values, strict=True)]
            values = part.forward(pieces, every=True)
        outputs.append(values)
    return outputs


def whole(path: Path) -> list[list[Array]]:
    """The same by the whole graph."""
    architecture = read_architecture(path)
    assert isinstance(architecture, DecoderArchitecture)
    runner = Runner(path, architecture, precision="f32", cache_bytes=4 << 20, threads=1)
    outputs = []
    for step in steps():
        runs = [Run(TEXTS[text][a:b], a, range(4 * text + 1, 4 * text + 5)) for text, a, b in step]
        ends = np.cumsum([len(run.tokens) for run in runs])
        outputs.append(np.split(runner.forward(runs, np.arange(ends[-1])).copy(), ends[:-1]))
    return outputs


def reference_states(variant: str, ids: list[int]) -> list[Array]:
    """transformers' hidden states in front of every layer, and after the last one, before its norm."""
    import torch

    model = oracle(variant)
    last: list[Any] = []
    layers = model.transformer.h if variant.startswith("gpt2") else model.model.layers
    with torch.inference_mode():
        hook = layers[-1].register_forward_hook(lambda _, __, out: last.append(out))
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        hook.remove()
    after = last[0][0] if isinstance(last[0], tuple) else last[0]
    return [state[0].numpy() for state in (*states[:-1], after.reshape(states[0].shape))]


@pytest.mark.parametrize(
    "variant", [v if v in BY_DAY else pytest.param(v, marks=pytest.mark.nightly) for v in VARIANTS]
)
def test_split_at_every_boundary(tmp_path: Path, variant: str) -> None:
    """Two parts that meet at any boundary give the logits of the whole, in prefill and in decode with strangers, and
    what passes between them is transformers' hidden state."""
    path = checkpoint(variant, tmp_path)
    expected, states = whole(path), reference_states(variant, TEXTS[0])
    for boundary in range(len(states)):
        front, back = opened(path, None, boundary), opened(path, boundary, None)
        for ours, theirs in zip(through([front, back]), expected, strict=True):
            for one, other in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(one, other, atol=1e-5)
        (hidden,) = front.forward([Piece("alone", TEXTS[0])])
        assert hidden.shape == states[boundary].shape
        bound = 1e-3 * max(1.0, float(np.abs(states[boundary]).max()))
        assert np.abs(hidden - states[boundary]).max() < bound, f"the state in front of layer {boundary}"


def test_three_parts(tmp_path: Path) -> None:
    """A part from the middle takes states and gives states; logits come of the last position unless all are wanted."""
    path = checkpoint("qwen3", tmp_path)
    parts = [opened(path, None, 1), opened(path, 1, 3), opened(path, 3, None)]
    for ours, theirs in zip(through(parts), whole(path), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
    states = parts[1].forward(
        [Piece(name, state) for name, state in zip("ab", parts[0].forward(pieces_of(7, 4)), strict=True)]
    )
    last = parts[2].forward([Piece(name, state) for name, state in zip("ab", states, strict=True)])
    assert [logits.shape for logits in last] == [(1, VOCABULARY)] * 2
    assert parts[2].length("a") == 7


def pieces_of(*lengths: int) -> list[Piece]:
    """A piece of random tokens for a, b, ..."""
    return [Piece(name, TEXTS[0][:length]) for name, length in zip("abcd", lengths, strict=False)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama of four layers, 64 wide."""
    return checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


@pytest.mark.parametrize(
    ("begin", "end", "words"),
    [(None, 5, "end is 5.* from 0 to 4"), (-1, None, "begin is -1"), (2, 2, "no layer between"), (3, 1, "no layer")],
)
def test_boundaries_that_are_none(llama: Path, begin: int | None, end: int | None, words: str) -> None:
    """A boundary out of range, or no layer between two, is refused by name."""
    with pytest.raises(ConfigError, match=words):
        opened(llama, begin, end)


def test_only_decoders(tmp_path: Path) -> None:
    """An encoder is refused in words."""
    tiny_encoder("bert", "Model", tmp_path)
    with pytest.raises(CheckpointError, match=r"bert.*only decoders"):
        opened(tmp_path)


def _with(value: float) -> Array:
    states = np.zeros((3, 64), np.float32)
    states[1, 5] = value
    return states


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((3, 63), np.float32), r"layer 2 takes hidden states float32 \[t, 64\].*\[3, 63\]"),
        (np.zeros(64, np.float32), r"not float32 \[64\]"),
        (np.zeros((0, 64), np.float32), "of 1 or more"),
        (np.zeros((3, 64), np.float64), "not float64"),
        ([1, 2, 3], "hidden states"),
        (_with(np.nan), "row 1 .*not finite"),
        (_with(-np.inf), "row 1 .*not finite"),
    ],
)
def test_states_that_are_none(llama: Path, values: Any, words: str) -> None:
    """States of another shape or type, or with a NaN, are refused by the field, and the sequence has not grown."""
    back = opened(llama, 2, None)
    with pytest.raises(InvalidRequest, match=words) as caught:
        back.forward([Piece("good", np.ones((2, 64), np.float32)), Piece("bad", values)])
    assert caught.value.param == "hidden"
    assert back.length("good") == back.length("bad") == 0


@pytest.mark.parametrize(
    ("values", "words"),
    [([], "one or more"), ([[1, 2]], "in a row"), ([0.5], "float64"), ([3, VOCABULARY], f"token {VOCABULARY}"),
     ([-1], "token -1"), (np.zeros((3, 64), np.float32), "token ids")],
)  # fmt: skip
def test_tokens_that_are_none(llama: Path, values: Any, words: str) -> None:
    """What is no token of the model is refused by the field."""
    with pytest.raises(InvalidRequest, match=words) as caught:
        opened(llama, None, 2).forward([Piece("bad", values)])
    assert caught.value.param == "tokens"


def test_room(llama: Path) -> None:
    """A full cache and a full context are told before anything is computed; an ended sequence gives its blocks back,
    and what comes after it in them is computed anew."""
    front = opened(llama, None, 2, cache_bytes=3 * 2 * 2 * 2 * 32 * 16 * 4)  # three blocks of two layers
    (first, _) = front.forward(pieces_of(40, 5))
    with pytest.raises(Overloaded, match="2 more blocks are needed, 0 are free"):
        front.forward([Piece("a", [5] * 30), Piece("b", [5] * 30)])
    assert (front.length("a"), front.length("b")) == (40, 5)
    front.end("a")
    front.end("a")
    assert front.length("a") == 0
    (again,) = front.forward([Piece("c", TEXTS[0][:40])])
    np.testing.assert_array_equal(again, first)
    with pytest.raises(InvalidRequest, match="one of a sequence at most"):
        front.forward([Piece("b", [5]), Piece("b", [5])])
    with pytest.raises(ContextLengthExceeded, match="would have 257 tokens; this model takes 256"):
        front.forward([Piece("d", [5] * 257)])


def test_a_part_reads_its_own_weights_only(tmp_path: Path) -> None:
    """Where the layers of others were withheld from the file, the part that is there still loads and computes."""
    from safetensors.numpy import load_file, save_file

    path = checkpoint("llama2", tmp_path / "whole")
    expected = opened(path, 2, None).forward([Piece("a", np.ones((3, 64), np.float32))])
    file = path / "model.safetensors"
    whole_file = load_file(file)
    withheld = {k: v for k, v in whole_file.items() if ".layers.0." not in k and ".layers.1." not in k}
    copy = tmp_path / "part"
    copy.mkdir()
    (copy / "config.json").write_text((path / "config.json").read_text())
    save_file({k: v for k, v in withheld.items() if "embed" not in k}, copy / "model.safetensors")
    make: Callable[..., Segment] = opened
    architecture = read_architecture(copy)
    assert isinstance(architecture, DecoderArchitecture)
    part = Segment(copy, architecture, make(path, 2, None).span, precision="f32", cache_bytes=4 << 20, threads=1)
    np.testing.assert_array_equal(part.forward([Piece("a", np.ones((3, 64), np.float32))]), expected)
