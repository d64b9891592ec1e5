"""The engine's queue: full for whoever fills it, and for nobody else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from interlace.engines.local.crowd import crowded_out
from interlace.engines.local.engine import LocalEngine
from interlace.engines.types import GenerateRequest, Outcome, Sampling, Usage
from interlace.errors import Overloaded
from tests.support.adapters import random_adapter
from tests.support.driving import load
from tests.support.tiny import tiny_llama_safetensors


def test_a_part_for_each_organisation() -> None:
    """Beyond the whole queue, an organisation may have what is its part among those that wait."""
    waiting = Counter({("a", ""): 12, ("b", ""): 3})
    assert crowded_out(waiting, ("a", ""), 1, 12)
    assert not crowded_out(waiting, ("b", ""), 3, 12)
    assert crowded_out(waiting, ("b", ""), 4, 12)
    assert not crowded_out(waiting, ("c", ""), 4, 12)


def test_a_part_for_each_adapter() -> None:
    """An organisation's part is shared by its adapters, whose floods keep none of its others out."""
    waiting = Counter({("a", "1"): 12})
    assert crowded_out(waiting, ("a", "1"), 1, 12)
    assert not crowded_out(waiting, ("a", "2"), 6, 12)
    assert crowded_out(waiting + Counter({("a", "2"): 6}), ("a", "2"), 1, 12)


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("12"), st.integers(1, 5)), max_size=80),
    st.integers(0, 24),
)
def test_little_waits_beyond_the_queue(comes: list[tuple[str, str, int]], most: int) -> None:
    """Whoever comes in whatever order: who has nothing waiting gets in, and the whole stays within its bound."""
    waiting: Counter[tuple[str, str]] = Counter()
    for organisation, adapter, places in comes:
        nothing = not any(number for group, number in waiting.items() if group[0] == organisation)
        refused = waiting.total() + places > max(most, places) and crowded_out(
            waiting, (organisation, adapter), places, most
        )
        assert not (nothing and refused)
        waiting[organisation, adapter] += 0 if refused else places
    assert waiting.total() <= most * (1 + 1 / 2 + 1 / 3 + 1 / 4) * 1.5 + 8 * 5


def _request(id: str, tenant: str, adapter: str = "") -> GenerateRequest:
    sampling = Sampling(max_tokens=6, temperature=0, ignore_eos=True)
    return GenerateRequest(id=id, prompt_ids=(3, 4, 5), sampling=sampling, tenant=tenant, adapter=adapter)


def test_a_flood_has_nobody_else_refused(tmp_path: Path) -> None:
    """The engine's queue is full of one organisation's requests: its next is refused, another's and another adapter's
    are not, and all that were taken on are answered."""
    tiny_llama_safetensors(tmp_path / "base")
    random_adapter(tmp_path / "0", 0)
    engine = load(tmp_path / "base", cache_bytes=1 << 20, max_sequences=2, max_waiting=8)
    assert isinstance(engine, LocalEngine)
    engine.register_adapter("x", tmp_path / "0")
    outcomes: dict[str, list[Outcome]] = {}

    def come(id: str, *who: str) -> bool:
        try:
            engine.add(engine.prepare(_request(id, *who)))
        except Overloaded:
            return False
        outcomes[id] = []
        return True

    assert sum(come(f"flood{number}", "a") for number in range(30)) == 10
    assert [come(f"b{number}", "b") for number in range(5)] == [True] * 4 + [False]
    assert [come(f"x{number}", "a", "x") for number in range(3)] == [True] * 2 + [False]  # half of a's half
    while engine.has_work():
        for id, outcome in engine.step():
            outcomes[id].append(outcome)
    assert len(outcomes) == 16
    assert all(isinstance(told[-1], Usage) for told in outcomes.values())
