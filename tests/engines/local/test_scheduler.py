"""The scheduler alone, over a make-believe model: its invariants hold after every step of any history, and every
sequence gets the tokens that it would get alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from interlace.engines.local.graph import BLOCK
from interlace.engines.local.scheduler import ALONE, Scheduler
from interlace.engines.local.sequences import Sequence
from interlace.engines.types import BATCH_PRIORITY
from tests.support.paged import ALPHABET, PagedModel, next_token, step

BLOCKS, MAX_RUNNING, STEP_TOKENS, LIMIT = 12, 5, 48, 7
CAPACITY = BLOCKS * BLOCK - 1  # tokens of the longest sequence that fits alone


class SchedulerHistory(RuleBasedStateMachine):
    """Sequences of several organisations, adapters and classes come, are cancelled, and decode to their wished length,
    in any order. Their prompts are pieces of few texts, so that they often begin alike."""

    border = 0

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(blocks=BLOCKS, max_running=MAX_RUNNING, step_tokens=STEP_TOKENS, border=self.border)
        self.model = PagedModel(BLOCKS)
        self.wished: dict[Sequence, int] = {}  # tokens in all at which a sequence ends
        self.prompts: dict[Sequence, int] = {}  # how long each one's was

    @rule(prompt=st.integers(1, CAPACITY - 1), output=st.integers(1, 3 * BLOCK), data=st.data())
    def come(self, prompt: int, output: int, data: st.DataObject) -> None:
        """A new sequence is queued, perhaps with siblings."""
        first = data.draw(st.integers(0, ALPHABET - 1))
        sequence = {
            "slice_limit": data.draw(st.sampled_from([None, None, LIMIT])),
            "tenant": data.draw(st.sampled_from(["a", "b", "c"])),
            "adapter": data.draw(st.sampled_from(["", "x"])),
            "priority": data.draw(st.sampled_from([BATCH_PRIORITY, -5, 0, 0, 0, 9])),
        }
        for _ in range(data.draw(st.sampled_from([1, 1, 1, 3]))):
            tokens = [(first * i) % ALPHABET for i in range(prompt)]
            one = Sequence(tokens, **sequence)  # type: ignore[arg-type]
            self.wished[one], self.prompts[one] = min(prompt + output, CAPACITY), prompt
            self.scheduler.add(one)

    @precondition(lambda self: self.wished)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Any sequence is given up, wherever it is; it is in no step from then on."""
        sequence = data.draw(st.sampled_from(list(self.wished)))
        self._end(sequence)

    @rule(times=st.integers(1, 40))
    def step(self, times: int) -> None:
        """Some steps run; each obeys its budget and moves something."""
        for _ in range(times):
            self._step()

    def _step(self) -> None:
        decoding = any(s.remaining == 1 and s.far == self._far(s.tokens) for s in self.scheduler.running)
        plan = self.scheduler.schedule()
        assert bool(plan) == bool(self.wished), "a step with work to do computes something"
        assert sum(piece.count for piece in plan) <= STEP_TOKENS * (1 if decoding else ALONE)
        assert all(count == 1 for count in Counter(id(piece.sequence) for piece in plan).values())
        limited = [p.count for p in plan if p.sequence.slice_limit is not None and p.sequence.remaining > 1]
        assert sum(limited) <= LIMIT, "whose logits are all kept, share what one step may hold of them"
        for piece in plan:
            sequence = piece.sequence
            assert sequence in self.wished, "only what is wished for is computed"
            assert 1 <= piece.count <= sequence.remaining
            assert sequence.far == self._far(sequence.tokens), "all of a sequence is computed in the way of its length"
            assert len(sequence.blocks) * BLOCK >= sequence.computed + piece.count, "each token has a place"
            if sequence.slice_limit is not None:
                assert sequence.found == 0, "who wants the logits of every position computes every position"
        told = self.model.forward(plan)
        self.scheduler.computed(plan)
        for sequence, token in told.items():
            sequence.tokens.append(token)
            if len(sequence.tokens) >= self.wished[sequence]:
                self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        """Gone, with the tokens that it would have got alone."""
        self.scheduler.remove(sequence)
        assert not sequence.blocks
        alone = sequence.tokens[: self.prompts[sequence]]
        while len(alone) < len(sequence.tokens):
            way = f"{sequence.adapter}\0far" if self._far(alone) else sequence.adapter
            alone.append(next_token((sequence.tenant, way), alone))
        assert sequence.tokens == alone
        del self.wished[sequence], self.prompts[sequence]

    def _far(self, tokens: list[int]) -> bool:
        return 0 < self.border < len(tokens)

    @invariant()
    def blocks_are_counted(self) -> None:
        """A block is held by as many as hold it, and is free or kept when there are none."""
        held = Counter(block for sequence in self.scheduler.running for block in sequence.blocks)
        assert all(self.scheduler.blocks.holders(block) == held[block] for block in range(BLOCKS))
        assert len(held) + self.scheduler.blocks.available == BLOCKS
        waiting = list(self.scheduler.queues.waiting())
        assert len(waiting) == self.scheduler.waiting
        assert all(not sequence.blocks and sequence.computed == 0 for sequence in waiting)

    @invariant()
    def no_block_is_shared_across_walls(self) -> None:
        """Whoever holds the same block is of one organisation and computed by one adapter, in one way."""
        owners: dict[int, set[tuple[str, str]]] = {}
        for sequence in self.scheduler.running:
            for block in sequence.blocks:
                owners.setdefault(block, set()).add((sequence.tenant, sequence.way))
        assert all(len(each) == 1 for each in owners.values())

    @invariant()
    def nothing_is_lost(self) -> None:
        """Every sequence waits or runs, never both, and no more run than may."""
        known = [*self.scheduler.running, *self.scheduler.queues.waiting()]
        assert sorted(map(id, known)) == sorted(map(id, self.wished))
        assert len(self.scheduler.running) <= MAX_RUNNING
        groups = self.scheduler.queues.groups.values()
        assert sum(group.members for group in groups) == len(known)
        reading = [sequence for group in groups for sequence in group.reading]
        assert set(reading) == {sequence for sequence in self.scheduler.running if sequence in reading}
        assert all(sequence in reading for sequence in self.scheduler.running if sequence.remaining > 1)

    def teardown(self) -> None:
        """Whatever the history, all that is left comes to its end in bounded steps, and every block is given back."""
        owed = sum(3 * length for length in self.wished.values()) + 10
        for _ in range(owed * 4):
            if not self.wished:
                break
            self._step()
        assert not self.wished, "a sequence never finished"
        assert self.scheduler.blocks.available == BLOCKS
        assert not self.scheduler.queues.groups


TestSchedulerHistory = SchedulerHistory.TestCase
TestSchedulerHistory.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestSchedulerHistory.__doc__ = "Random histories of the scheduler."


class BorderHistory(SchedulerHistory):
    """The same of a model that computes longer sequences in another way, from their first token on."""

    border = 2 * BLOCK + 5


TestBorderHistory = BorderHistory.TestCase
TestBorderHistory.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestBorderHistory.__doc__ = "Random histories across a border."


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("history", [SchedulerHistory, BorderHistory])
def test_histories_at_length(history: type[SchedulerHistory]) -> None:
    """The same, for many histories."""
    machine = history.TestCase()
    machine.settings = settings(max_examples=3000, stateful_step_count=60, deadline=None)
    machine.runTest()


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
        [(False, 3), (True, 5)],
        [(False, 1), (True, 7)],
        [(False, 1), (True, 7)],
        [(False, 1), (True, 7)],
        [(False, 1), (True, 7)],
    ]


def test_a_long_step_ends_with_the_first_prompt_that_does() -> None:
    """A prompt alone is read in long steps; of a burst, none waits for its first token while many others are read."""
    alone = Scheduler(blocks=BLOCKS, max_running=4, step_tokens=8)
    alone.add(Sequence(list(range(40))))
    assert [piece.count for piece in alone.schedule()] == [8 * ALONE]
    burst = Scheduler(blocks=BLOCKS, max_running=8, step_tokens=8)
    for _ in range(6):
        burst.add(Sequence([1, 2, 3]))
    assert [piece.count for piece in burst.schedule()] == [3, 3, 2]
    behind = Scheduler(blocks=BLOCKS, max_running=4, step_tokens=8)
    behind.add(Sequence(list(range(20))))
    behind.add(Sequence(list(range(40))))
    assert [piece.count for piece in behind.schedule()] == [20]


def test_a_full_cache_queues_the_next() -> None:
    """A sequence is admitted only when its prompt fits beside those that run."""
    scheduler = Scheduler(blocks=4, max_running=4, step_tokens=512)
    first, second = Sequence(list(range(80))), Sequence(list(range(40)))
    scheduler.add(first)
    scheduler.add(second)
    assert [piece.sequence for piece in scheduler.schedule()] == [first]
    assert list(scheduler.queues.waiting()) == [second]
    scheduler.remove(first)
    assert [piece.sequence for piece in scheduler.schedule()] == [second]


def test_the_youngest_gives_way_and_is_computed_again() -> None:
    """When the cache runs out, the sequence admitted last waits at the head of the queue, its output kept, and finds
    what of its blocks is left."""
    scheduler, model = Scheduler(blocks=5, max_running=2, step_tokens=512), PagedModel(5)
    old, young, later = Sequence([1] * 20), Sequence([2] * 20), Sequence([3] * 20)
    for sequence in (old, young, later):
        scheduler.add(sequence)
    while not scheduler.preemptions:
        step(scheduler, model)
    assert scheduler.running == [old]
    assert (young.computed, young.blocks) == (0, [])
    written = len(young.tokens)
    assert written > BLOCK
    scheduler.remove(old)
    step(scheduler, model)
    assert scheduler.running == [young, later], "who gave way goes before who waited already"
    assert young.found == (written - 1) // BLOCK * BLOCK > 0
    assert len(young.tokens) == written + 1


def test_who_crosses_the_border_is_read_anew() -> None:
    """A sequence that grows past the border gives its blocks back and is computed from its first token on, keeping its
    output; what it had computed is found by others within the border, and not by those beyond it."""
    scheduler, model = Scheduler(blocks=9, max_running=2, step_tokens=512, border=40), PagedModel(9)
    one = Sequence([1] * 39)
    scheduler.add(one)
    while len(one.tokens) <= 40:
        step(scheduler, model)
    assert (one.far, one.computed) == (False, 40)
    plan, told = step(scheduler, model)
    assert [(piece.sequence, piece.count) for piece in plan] == [(one, 41)]
    assert told == [one]
    assert (one.far, one.computed, one.found, scheduler.preemptions) == (True, 41, 0, 0)
    short, long = Sequence([1] * 39), Sequence(list(one.tokens[:41]))
    for other, found in ((short, BLOCK), (long, BLOCK)):
        scheduler.add(other)
        step(scheduler, model)
        assert other.found == found
        scheduler.remove(other)
    assert long.far
    assert not short.far


def test_a_step_without_room_for_all_is_refused() -> None:
    """A token budget smaller than the number of running sequences could starve one of them."""
    with pytest.raises(ValueError, match="one token of every"):
        Scheduler(blocks=4, max_running=9, step_tokens=8)
