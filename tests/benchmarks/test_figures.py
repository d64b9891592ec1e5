"""What is said of measurements: spreads, ratios within a round, goals, and the order in which contestants run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.figures import Comparison, Rate, Spread, added, compare, paired_ratios
from benchmarks.peers.lines import Stopwatch
from benchmarks.report import Report
from benchmarks.turns import Shape, gather, take_turns

rates = st.lists(st.floats(1, 1e6), min_size=1, max_size=9)


@given(rates, st.floats(0.1, 10), st.lists(st.floats(0.1, 10), min_size=9, max_size=9))
def test_drift_of_the_machine_cancels_out_of_paired_ratios(theirs: list[float], factor: float, drift: list[float]):
    """One side `factor` times as fast in every round gives `factor`, however the machine's speed changes by round."""
    slowed = [value * d for value, d in zip(theirs, drift, strict=False)]
    ratios = paired_ratios([factor * value for value in slowed], slowed)
    assert ratios == pytest.approx([factor] * len(theirs))


def test_rounds_that_do_not_pair_are_refused():
    """A round that one side lacks would shift all pairs after it."""
    with pytest.raises(ValueError, match="3 rounds on one side, 2 on the other"):
        paired_ratios([1, 2, 3], [1, 2])


def test_a_spread_is_median_least_and_greatest():
    """And shows itself with them, but not for a single round, whose spread is unknown."""
    assert Spread.of([3.0, 1.0, 2.0, 10.0]) == Spread(2.5, 1.0, 10.0, 4)
    assert Spread.of([3.0, 1.0, 2000.0]).text(1) == "3.0 (1.0–2,000.0)"
    assert Spread.of([3.0]).text(1) == "3.0"
    with pytest.raises(ValueError, match="no measurements"):
        Spread.of([])


def test_contestants_are_compared_shape_by_shape_and_goals_judged_by_the_median():
    """Only shapes both have; a median at the goal meets it, one below misses it, none is not judged."""
    measured = [
        Rate("decode", "1 stream", "a", (90.0, 95.0, 10.0)),
        Rate("decode", "1 stream", "b", (100.0, 100.0, 100.0)),
        Rate("prefill", "1 stream", "b", (1.0,)),
    ]
    (met,) = compare(measured, "a", "b", 0.9)
    assert met.ratio == Spread(0.9, 0.1, 0.95, 3)
    assert (met.phase, met.met) == ("decode", True)
    assert compare(measured, "a", "b", 0.91)[0].met is False
    assert compare(measured, "a", "b", None)[0].met is None
    assert compare(measured, "a", "nobody", 0.9) == []


def test_contestants_take_turns_on_the_same_prompts_and_none_always_goes_first():
    """Per round and shape all run once, one after another, on equal prompts that change from round to round."""
    shapes = [Shape("decode", 2, 5, 1), Shape("prefill", 1, 7, 1)]
    seen: list[tuple[str, Shape, list[list[int]]]] = []

    def measure(name: str, shape: Shape, prompts: list[list[int]]) -> float:
        seen.append((name, shape, prompts))
        return float(len(seen))

    measured = list(take_turns(["a", "b"], shapes, 2, 1000, measure))
    assert [name for name, _, _ in seen] == ["a", "b", "a", "b", "b", "a", "b", "a"]
    assert [shape for _, shape, _ in seen] == [shapes[0]] * 2 + [shapes[1]] * 2 + [shapes[0]] * 2 + [shapes[1]] * 2
    prompts = [given for _, _, given in seen]
    assert prompts[0] == prompts[1] != prompts[4]
    assert [len(prompt) for prompt in prompts[0]] == [5, 5]
    assert all(100 <= token < 900 for given in prompts for prompt in given for token in prompt)
    assert gather(measured)[0] == Rate("decode", "2 streams, 5-token prompts", "a", (1.0, 6.0))


def test_decode_is_measured_only_while_every_stream_runs(monkeypatch: pytest.MonkeyPatch):
    """Tokens before the last stream's first one, and after the first stream's last one, are left out."""
    clock = iter([0.0, 1.0, 2.0, 3.0, 5.0, 9.0, 10.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    watch = Stopwatch([[1, 2, 3], [4, 5]], 3)
    watch.step({0: 1})  # at 1 s: stream 1 is still in prefill
    watch.step({0: 1, 1: 1})  # at 2 s: prefill is over
    watch.step({1: 1})  # at 3 s
    watch.step({0: 1})  # at 5 s: stream 0 has all its tokens
    watch.step({1: 1})  # at 9 s: alone, not counted
    measured = watch.measured()
    assert measured["prefill"] == 5 / 2
    assert measured["decode"] == 2 / 3
    assert measured["whole"] == 6 / 10


def test_the_table_shows_every_rate_and_says_which_goal_was_missed():
    """A reader of the docs finds machine, date, medians with their spread and the verdict."""
    about = {"date": "2030-01-02", "cpu": "Some CPU", "cores": 2, "memory_gib": 8, "system": "Linux 1", "flags": [],
             "python": "3.11", "versions": {"openvino": "1.2"}, "load": 0.1, "threads": 2}  # fmt: skip
    shown = [Rate("decode", "1 stream", "interlace f32", (10.0, 12.0, 14.0))]
    compared = [Comparison("decode", "1 stream", "interlace f32", "x", Spread(1.2, 1.1, 1.3, 3), 1.5)]
    text = Report("engine", "The engine", about, shown, compared).markdown()
    assert "2030-01-02, Some CPU, 2 cores" in text
    assert "| interlace f32 | 12 (10–14) |" in text
    assert "| 1.20 (1.10–1.30) | ≥ 1.5 | **missed** |" in text


def test_a_contestant_that_drops_out_is_compared_in_the_rounds_it_had():
    """Otherwise one peer that fails in its third round takes the whole report with it."""
    measured = [Rate("cpu", "64 streams", "a", (10.0, 20.0, 30.0)), Rate("cpu", "64 streams", "b", (5.0,))]
    assert compare(measured, "a", "b", None)[0].ratio == Spread(2.0, 2.0, 2.0, 1)
    assert added(measured, "cpu", "a", "b", None)[0].amount == Spread(5.0, 5.0, 5.0, 1)
