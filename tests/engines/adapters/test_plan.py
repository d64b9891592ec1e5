"""How a step with adapters is computed: what lies where, what is copied, and when a second pass pays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openvino import Type

from interlace.engines.local.adapter_bank import Adapter, Bank, to_bf16
from interlace.engines.local.adapter_plan import lay_out, plan_passes
from interlace.engines.local.compiled import Run

SHAPES = {"a.q_proj": (6, 4), "a.up_proj": (8, 4)}
BASE = 55  # times as large as an adapter


def _adapter(serial: int, ranks: dict[str, int] | None = None) -> Adapter:
    ranks = {"a.q_proj": 2, "a.up_proj": 2} if ranks is None else ranks
    layers = {
        layer: (np.full((rank, SHAPES[layer][1]), serial, "f4"), np.full((SHAPES[layer][0], rank), -serial, "f4"))
        for layer, rank in ranks.items()
    }
    return Adapter(f"a{serial}", serial, layers, ranks, 1)


def _runs(*rows: tuple[int | None, int]) -> list[Run]:
    adapters = {serial: _adapter(serial) for serial, _ in rows if serial is not None}
    return [Run([0] * count, 0, [0], None if serial is None else adapters[serial]) for serial, count in rows]


def _planned(*rows: tuple[int | None, int]) -> list[tuple[list[int], bool]]:
    return [(one.members, one.spread) for one in plan_passes(_runs(*rows), BASE)]


def test_decodes_have_lines_of_their_own() -> None:
    """Sequences that decode run in one pass, a line each, also where some share an adapter or have none."""
    assert _planned(*((n, 1) for n in range(32))) == [(list(range(32)), True)]
    assert _planned((1, 1), (2, 1), (1, 1), (None, 1), (3, 1)) == [([0, 1, 2, 3, 4], True)]


def test_many_of_one_adapter_share_a_line() -> None:
    """Where all rows have one adapter, or a few have many rows each, it is read once for all of them."""
    assert _planned(*((1, 1) for _ in range(32))) == [(list(range(32)), False)]
    assert _planned(*((n % 2, 1) for n in range(64))) == [(list(range(64)), False)]


def test_a_prompt_beside_decodes_runs_apart() -> None:
    """A long prompt would make every decoding sequence's line as long as its own: it is computed in a second pass."""
    assert _planned(*((n, 1) for n in range(31)), (99, 200)) == [(list(range(31)), True), ([31], False)]
    assert _planned((1, 1), (1, 200)) == [([0, 1], False)]
    assert _planned((None, 1), (None, 300), (5, 40)) == [([0, 1, 2], False)]


def test_prompts_of_one_length_run_together() -> None:
    """Many prompts alike are one grid; a crowd of short ones is not made as long as one that is very long."""
    assert _planned(*((n, 40) for n in range(20))) == [(list(range(20)), False)]
    assert _planned(*((n, 4) for n in range(20)), (99, 900)) == [(list(range(20)), False), ([20], False)]


@given(
    st.lists(st.tuples(st.sampled_from([None, 0, 1, 2, 3]), st.one_of(st.just(1), st.integers(1, 90)))),
    st.integers(0, 2000),
)
def test_every_run_is_computed_once(rows: list[tuple[int | None, int]], base: int) -> None:
    """Whatever the mix, each run is in one pass; in its grid each row has a place of its own, on a line of its own
    adapter, and rows without an adapter have none."""
    runs = _runs(*rows, (4, 1))
    passes = plan_passes(runs, base)
    assert sorted(at for one in passes for at in one.members) == list(range(len(runs)))
    for one in passes:
        own = [runs[at] for at in one.members]
        serials = [run.adapter.serial for run in own if run.adapter is not None]
        assert serials
        order = serials if one.spread else list(dict.fromkeys(serials))
        laid = lay_out(own, order)
        lines, width = laid["adapter_grid"].tolist()
        assert (lines, width == 1 or not one.spread) == (len(order), True)
        owners = [run.adapter.serial if run.adapter else None for run in own for _ in run.tokens]
        places = laid["adapter_places"].tolist()
        assert len({place for place in places if place < lines * width}) == sum(o is not None for o in owners)
        for row, (owner, place) in enumerate(zip(owners, places, strict=True)):
            assert (owner is None) == (place == lines * width)
            if owner is not None:
                assert order[place // width] == owner
                assert laid["adapter_rows"][place] == row


def test_only_what_changed_is_copied() -> None:
    """A sequence that comes or goes costs a slot, not the whole stack; the same batch again costs nothing."""
    bank = Bank(SHAPES, Type.f32)
    adapters = [_adapter(n) for n in range(1, 9)]
    bank.arrange(adapters)
    assert bank.copied == 8
    assert bank.arrange(adapters[::-1]) == bank.arrange(adapters)
    assert bank.copied == 8
    bank.arrange([*adapters[:3], *adapters[4:], _adapter(20)])
    assert bank.copied == 9
    bank.arrange(adapters[:3])
    assert bank.copied <= 12


@given(st.lists(st.lists(st.integers(1, 7), min_size=2, max_size=9), min_size=1, max_size=30))
def test_stacks_hold_what_they_should(batches: list[list[int]]) -> None:
    """After any history of batches, with repeats and ranks that differ, each line holds its adapter, filled up with
    zeros, and the stack is never narrower than it must be nor wider for long."""
    ranks: list[dict[str, int]] = [{"a.q_proj": n} if n % 2 else {"a.q_proj": 1, "a.up_proj": n} for n in range(1, 8)]
    adapters = {serial: _adapter(serial, ranks[serial - 1]) for serial in range(1, 8)}
    bank = Bank(SHAPES, Type.f32)
    for batch in batches:
        order = bank.arrange([adapters[serial] for serial in batch])
        assert sorted(order) == sorted(batch)
        _check(bank, order, adapters)
    for _ in range(20):
        bank.arrange([adapters[serial] for serial in batches[-1]])
    for layer in SHAPES:
        widest = max(adapters[serial].ranks.get(layer, 0) for serial in batches[-1])
        assert bank.tensors()[f"{layer}.down"].shape[1] == widest


def _check(bank: Bank, order: list[int], adapters: dict[int, Adapter]) -> None:
    tensors = bank.tensors()
    for layer, (outputs, inputs) in SHAPES.items():
        downs, ups = tensors[f"{layer}.down"].data, tensors[f"{layer}.up"].data
        assert (len(downs), len(ups)) == (len(order), len(order))
        for line, serial in enumerate(order):
            rank = adapters[serial].ranks.get(layer, 0)
            assert (downs[line, :rank] == serial).all()
            assert (ups[line, :, :rank] == -serial).all()
            assert not downs[line, rank:].any()
            assert not ups[line, :, rank:].any()
            assert (downs.shape[2], ups.shape[1]) == (inputs, outputs)


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 1.00390625, 3.14159, 1e-30, -65504.0])
def test_bf16(value: float) -> None:
    """Numbers are rounded to the nearest bfloat16, as torch does."""
    import torch

    ours: Any = to_bf16(np.array([value], np.float32))
    assert ours[0] == torch.tensor([value]).bfloat16().view(torch.uint16).item()
