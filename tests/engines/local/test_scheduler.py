"""The scheduler alone, without a model: its invariants hold after every step of any history."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from interlace.engines.local.graph import BLOCK
from interlace.engines.local.scheduler import ALONE, Scheduler, Sequence

BLOCKS, MAX_RUNNING, STEP_TOKENS, LIMIT = 12, 5, 48, 7
CAPACITY = BLOCKS * BLOCK - 1  # tokens of the longest sequence that fits alone


class SchedulerHistory(RuleBasedStateMachine):
    """Sequences come, are cancelled, and decode to their wished length, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(blocks=BLOCKS, max_running=MAX_RUNNING, step_tokens=STEP_TOKENS)
        self.wished: dict[Sequence, int] = {}  # tokens in all at which a sequence ends

    @rule(prompt=st.integers(1, CAPACITY - 1), output=st.integers(1, 3 * BLOCK), data=st.data())
    def come(self, prompt: int, output: int, data: st.DataObject) -> None:
        """A new sequence is queued."""
        limit = data.draw(st.sampled_from([None, LIMIT]))
        sequence = Sequence(list(range(prompt)), slice_limit=limit)
        self.wished[sequence] = min(prompt + output, CAPACITY)
        self.scheduler.add(sequence)

    @precondition(lambda self: self.wished)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Any sequence is given up, wherever it is."""
        sequence = data.draw(st.sampled_from(list(self.wished)))
        del self.wished[sequence]
        self.scheduler.remove(sequence)

    @rule(times=st.integers(1, 40))
    def step(self, times: int) -> None:
        """Some steps run; each obeys its budget and moves something."""
        for _ in range(times):
            self._step()

    def _step(self) -> None:
        decoding = any(sequence.remaining == 1 for sequence in self.scheduler.running)
        plan = self.scheduler.schedule()
        assert bool(plan) == bool(self.wished), "a step with work to do computes something"
        assert sum(piece.count for piece in plan) <= STEP_TOKENS * (1 if decoding else ALONE)
        assert all(count == 1 for count in Counter(id(piece.sequence) for piece in plan).values())
        limited = [p.count for p in plan if p.sequence.slice_limit is not None and p.sequence.remaining > 1]
        assert sum(limited) <= LIMIT, "whose logits are all kept, share what one step may hold of them"
        for piece in plan:
            sequence = piece.sequence
            assert 1 <= piece.count <= sequence.remaining
            assert len(sequence.blocks) * BLOCK >= sequence.computed + piece.count, "each token has a place"
        completed = [piece.sequence for piece in plan if piece.completes]
        self.scheduler.computed(plan)
        for sequence in completed:
            sequence.tokens.append(0)
            if len(sequence.tokens) >= self.wished[sequence]:
                del self.wished[sequence]
                self.scheduler.remove(sequence)

    @invariant()
    def blocks_are_held_once(self) -> None:
        """Every block is free or held by exactly one running sequence."""
        held = [block for sequence in self.scheduler.running for block in sequence.blocks]
        assert len(held) == len(set(held))
        assert len(held) + self.scheduler.free_blocks == BLOCKS
        assert all(not sequence.blocks and sequence.computed == 0 for sequence in self.scheduler.waiting)

    @invariant()
    def nothing_is_lost(self) -> None:
        """Every sequence waits or runs, never both, and no more run than may."""
        known = [*self.scheduler.running, *self.scheduler.waiting]
        assert sorted(map(id, known)) == sorted(map(id, self.wished))
        assert len(self.scheduler.running) <= MAX_RUNNING

    def teardown(self) -> None:
        """Whatever the history, all that is left comes to its end in bounded steps."""
        owed = sum(3 * length for length in self.wished.values()) + 10
        for _ in range(owed * 4):
            if not self.wished:
                break
            self._step()
        assert not self.wished, "a sequence never finished"
        assert self.scheduler.free_blocks == BLOCKS


TestSchedulerHistory = SchedulerHistory.TestCase
TestSchedulerHistory.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestSchedulerHistory.__doc__ = "Random histories of the scheduler."


def test_decodes_go_before_prefills_and_share_a_step() -> None:
    """A sequence that decodes gets its token in every step, while a long prompt is read beside it in pieces."""
    scheduler = Scheduler(blocks=BLOCKS, max_running=4, step_tokens=8)
    short, long = Sequence([1, 2, 3]), Sequence(list(range(56)))
    scheduler.add(short)
    scheduler.add(long)
    counts = []
    for _ in range(5):
        plan = scheduler.schedule()
        counts.append([(piece.sequence is long, piece.count) for piece in plan])
        scheduler.computed(plan)
        short.tokens.append(0)
    assert counts == [
        [(False, 3), (True, 29)],
        [(False, 1), (True, 7)],
        [(False, 1), (True, 7)],
        [(False, 1), (True, 7)],
        [(False, 1), (True, 6)],
    ]


def test_a_full_cache_queues_the_next() -> None:
    """A sequence is admitted only when its prompt fits beside those that run."""
    scheduler = Scheduler(blocks=4, max_running=4, step_tokens=512)
    first, second = Sequence(list(range(80))), Sequence(list(range(40)))
    scheduler.add(first)
    scheduler.add(second)
    assert [piece.sequence for piece in scheduler.schedule()] == [first]
    assert list(scheduler.waiting) == [second]
    scheduler.remove(first)
    assert [piece.sequence for piece in scheduler.schedule()] == [second]


def test_the_youngest_gives_way_and_is_computed_again() -> None:
    """When the cache runs out, the sequence admitted last waits at the head of the queue, its output kept."""
    scheduler = Scheduler(blocks=4, max_running=4, step_tokens=512)
    old, young = Sequence(list(range(20))), Sequence(list(range(20)))
    scheduler.add(old)
    scheduler.add(young)
    for _ in range(200):
        plan = scheduler.schedule()
        ends = [piece.sequence for piece in plan if piece.completes]
        scheduler.computed(plan)
        for sequence in ends:
            sequence.tokens.append(7)
        if young in scheduler.waiting:
            break
    assert scheduler.running == [old]
    assert young.computed == 0
    assert young.blocks == []
    assert set(young.tokens[20:]) == {7}


def test_a_step_without_room_for_all_is_refused() -> None:
    """A token budget smaller than the number of running sequences could starve one of them."""
    with pytest.raises(ValueError, match="one token of every"):
        Scheduler(blocks=4, max_running=9, step_tokens=8)
