"""Which tokens run in the next step: iteration-level batching over a paged cache (Orca, 2022; PagedAttention, 2023).

A step takes one token of every sequence that decodes, then fills the rest of its token budget with prompt tokens:
first of sequences whose prefill is under way, then of new ones in the order they came. While none decodes, nobody waits
for a next token, and the budget is `ALONE` times as large. A sequence is admitted once
the cache has room for its prompt; should the cache run out later, the sequence admitted last gives its blocks back
and waits at the head of the queue to be computed again. One alone always fits, since none is longer than the cache.

The state is plain: a list of sequences, a queue, a list of free blocks. Nothing here knows of tokens' meaning.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from interlace.engines.local.graph import BLOCK

ALONE = 4  # long steps read prompts faster, but are pauses to whoever is being answered (decision 0010)


@dataclass(eq=False)
class Sequence:
    """One continuation being computed: prompt and output in `tokens`, the first `computed` of them in the cache."""

    tokens: list[int]
    owner: Any = None  # whoever queued it; the scheduler does not look
    slice_limit: int | None = None  # at most so many prompt tokens in one step, of all that have a limit together
    computed: int = 0
    blocks: list[int] = field(default_factory=list)

    @property
    def remaining(self) -> int:
        """Tokens not yet in the cache: 1 while decoding, more before."""
        return len(self.tokens) - self.computed


@dataclass(frozen=True, slots=True)
class Slice:
    """`count` tokens of `sequence` to compute in this step."""

    sequence: Sequence
    count: int

    @property
    def completes(self) -> bool:
        """Whether the step reaches the sequence's last token, so that a next one can be chosen."""
        return self.count == self.sequence.remaining


class Scheduler:
    """Sequences waiting and running, and the cache blocks they hold."""

    def __init__(self, *, blocks: int, max_running: int, step_tokens: int) -> None:
        if blocks < 1 or max_running < 1 or step_tokens < max_running:
            raise ValueError("a step must have room for one token of every running sequence")
        self.total_blocks = blocks
        self.max_running = max_running
        self.step_tokens = step_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._free = list(range(blocks - 1, -1, -1))  # used as a stack: blocks just freed are warm

    @property
    def free_blocks(self) -> int:
        """Cache blocks that no sequence holds."""
        return len(self._free)

    def could_start(self, tokens: int) -> int:
        """How many sequences of that length slots and cache would take on at once, did none wait."""
        blocks = (self.free_blocks - self._promised()) // _blocks_for(tokens + 1)
        return max(0, min(self.max_running - len(self.running), blocks))

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; it must fit the cache alone."""
        assert _blocks_for(len(sequence.tokens) + 1) <= self.total_blocks
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or cancelled, and free its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._release(sequence)

    def schedule(self) -> list[Slice]:
        """Choose the slices of the next step and give them their blocks. Empty only when nothing waits or runs."""
        plan: list[Slice] = []
        decoding = sum(s.remaining == 1 for s in self.running)
        budget = self.step_tokens - decoding if decoding else ALONE * self.step_tokens
        turn = 0
        while turn < len(self.running):  # oldest first; whoever gives way to an older one is behind it in the list
            sequence = self.running[turn]
            decodes = sequence.remaining == 1  # its token is budgeted already
            taken = self._take(sequence, budget, plan)
            budget -= 0 if decodes else taken
            turn += 1
        while budget > 0 and self.waiting and len(self.running) < self.max_running and self._admits(self.waiting[0]):
            sequence = self.waiting.popleft()
            self.running.append(sequence)
            budget -= self._take(sequence, budget, plan)
        return plan

    def computed(self, plan: Iterable[Slice]) -> None:
        """Note that the step of `plan` is done: its tokens are in the cache."""
        for piece in plan:
            piece.sequence.computed += piece.count

    # --- blocks ----------------------------------------------------------------------------------------------

    def _take(self, sequence: Sequence, budget: int, plan: list[Slice]) -> int:
        """Plan the next slice of a running sequence; return how many tokens that is."""
        count = 1 if sequence.remaining == 1 else min(sequence.remaining, budget, _left_of_limit(sequence, plan))
        if count <= 0:
            return 0
        while not self._grow(sequence, sequence.computed + count):
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return 0
        plan.append(Slice(sequence, count))
        return count

    def _admits(self, sequence: Sequence) -> bool:
        """Room for all of its tokens, beside what running prefills still need and a block more for each that runs,
        so that a sequence which gave way is not computed anew for a few tokens only to give way again."""
        return _blocks_for(len(sequence.tokens) + 1) <= self.free_blocks - self._promised()

    def _promised(self) -> int:
        return sum(_blocks_for(len(s.tokens) + 1) - len(s.blocks) + 1 for s in self.running)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        sequence.computed = 0
        self.waiting.appendleft(sequence)

    def _grow(self, sequence: Sequence, tokens: int) -> bool:
        missing = _blocks_for(tokens) - len(sequence.blocks)
        if missing > self.free_blocks:
            return False
        sequence.blocks += [self._free.pop() for _ in range(missing)]
        return True

    def _release(self, sequence: Sequence) -> None:
        self._free += reversed(sequence.blocks)
        sequence.blocks = []


def _left_of_limit(sequence: Sequence, plan: Iterable[Slice]) -> int:
    """How many prompt tokens the limit of `sequence` still allows beside those planned for others with one."""
    if sequence.slice_limit is None:
        return sequence.remaining
    others = (piece for piece in plan if piece.sequence.slice_limit is not None)
    return sequence.slice_limit - sum(piece.count for piece in others if piece.sequence.remaining > 1)


def _blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK)
