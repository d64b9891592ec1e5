"""Which tokens run in the next step: iteration-level batching over a paged cache (Orca, 2022; PagedAttention, 2023).

A step takes one token of every sequence that decodes, then fills the rest of its token budget with prompt tokens, a
`QUANTUM` at a time, of whoever's turn it is (`fairness`). While none decodes, nobody waits for a next token, and the
budget is `ALONE` times as large, until it has read some prompt to its end: whose first token waits for the step's.

A sequence is admitted once there are a slot and room for its prompt, less what it finds in the cache (`blocks`). Where
there are not, it takes the place of one of a lower class, or of an organisation (or an adapter of its own one) that was
given no less so far and has no less afterwards (`shares`): what was taken from it mostly lies in the cache still.

Should the cache run out later, the lowest class gives way, in it whoever has the largest share, and of theirs the one
admitted last; it waits before its group's others to be computed again. Who gave way three times gives way last. One
alone always fits, since none is longer than the cache.

Some models compute a sequence in another way, from its first token on, once it is longer than `border` tokens
(LongRoPE): one that grows past it gives its blocks back and is read anew.

The state is plain: a list of sequences, queues of them, blocks. Nothing here knows of tokens' meaning.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from interlace.engines.local.blocks import Blocks, Names, blocks_for
from interlace.engines.local.fairness import Group, Queues, group_of
from interlace.engines.local.graph import BLOCK
from interlace.engines.local.sequences import Sequence, Slice
from interlace.engines.local.shares import Shares

ALONE = 4  # long steps read prompts faster, but are pauses to whoever is being answered (decision 0010)
QUANTUM = 2 * BLOCK  # prompt tokens of one turn, where others have something to read
ATTEMPTS = 2  # in one step, to have others give way: whose turn it is has the best claim, so more would be in vain

Plan = dict[Sequence, int]


class Scheduler:
    """Sequences waiting and running, and the cache blocks they hold."""

    def __init__(self, *, blocks: int, max_running: int, step_tokens: int, border: int = 0) -> None:
        if blocks < 1 or max_running < 1 or step_tokens < max_running:
            raise ValueError("a step must have room for one token of every running sequence")
        self.max_running = max_running
        self.step_tokens = step_tokens
        self.border = border
        self.blocks = Blocks(blocks)
        self.queues = Queues()
        self.running: list[Sequence] = []  # in the order they were admitted
        self.preemptions = 0
        self.found_tokens = 0  # prompt tokens that new sequences found in the cache
        self._names = Names()

    @property
    def waiting(self) -> int:
        """How many sequences wait."""
        return self.queues.waiting_count

    def could_start(self, tokens: int) -> int:
        """How many sequences of that length slots and cache would take on at once, did none wait."""
        blocks = self._room() // blocks_for(tokens + 1)
        return max(0, min(self.max_running - len(self.running), blocks))

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; it must fit the cache alone."""
        assert blocks_for(len(sequence.tokens) + 1) <= self.blocks.total
        sequence.far = self._beyond(sequence)
        self.queues.join(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or cancelled, and free its blocks."""
        if sequence.group is None:
            return
        if sequence in self.running:
            self.running.remove(sequence)
        self.queues.leave(sequence)
        self._release(sequence)

    def schedule(self) -> list[Slice]:
        """Choose the slices of the next step and give them their blocks. Empty only when nothing waits or runs."""
        plan: Plan = {}
        if self.border:
            self._cross()
        self._decode(plan)
        self._read(plan)
        return [Slice(sequence, count) for sequence, count in plan.items()]

    def computed(self, plan: Iterable[Slice]) -> None:
        """Note that the step of `plan` is done: its tokens are in the cache, and full blocks can be found there."""
        for piece in plan:
            sequence = piece.sequence
            before, sequence.computed = sequence.computed, sequence.computed + piece.count
            if sequence.computed // BLOCK > before // BLOCK:
                self._name(sequence, before // BLOCK)
            if group_of(sequence).reading and sequence.remaining == 0:
                self.queues.read(sequence)

    # --- the border ------------------------------------------------------------------------------------------

    def _beyond(self, sequence: Sequence) -> bool:
        return 0 < self.border < len(sequence.tokens)

    def _cross(self) -> None:
        """Who grew past the border waits, first of its group, to be read anew."""
        for sequence in [one for one in self.running if not one.far and self._beyond(one)]:
            self.running.remove(sequence)
            self._release(sequence)
            self.queues.rejoin(sequence)
            sequence.names.clear()
            sequence.far = True

    # --- the two parts of a step -----------------------------------------------------------------------------

    def _decode(self, plan: Plan) -> None:
        """A token for everyone who decodes."""
        for sequence in list(self.running):
            if len(sequence.tokens) - sequence.computed != 1 or not sequence.blocks:
                continue  # it reads, or has just given way
            if self._grow(sequence, len(sequence.tokens), plan):
                plan[sequence] = 1
                group_of(sequence).charge(1)

    def _read(self, plan: Plan) -> None:
        """Spend on prompts what is left of the step's budget."""
        budget = self.step_tokens - len(plan) if plan else ALONE * self.step_tokens
        groups, door = self.queues.behind(), _Door()
        while budget > 0 and groups:
            group = self.queues.first(groups)
            sequence = self._reader(group, plan) or self._admitted(groups, group, door, plan)
            if sequence is None:
                groups = [g for g in groups if g is not group and (g.reading or not door.closed)]
                continue
            taken = plan.get(sequence, 0)
            count = min(_left(sequence, plan), budget, budget if len(groups) == 1 else QUANTUM)
            if not self._grow(sequence, sequence.computed + taken + count, plan):
                groups.remove(group)
                continue
            plan[sequence] = taken + count
            budget -= count
            if taken + count == sequence.remaining:  # it is waited for now
                budget = min(budget, self.step_tokens - sum(plan.values()))
            group.charge(count)
            if not door.turn_kept:
                self.queues.turn_taken()

    def _reader(self, group: Group, plan: Plan) -> Sequence | None:
        """The first of the group whose prompt is being read and who may read on."""
        return next((sequence for sequence in group.reading if _left(sequence, plan) > 0), None)

    # --- admission -------------------------------------------------------------------------------------------

    def _admitted(self, groups: list[Group], group: Group, door: _Door, plan: Plan) -> Sequence | None:
        """The first of the group that waits, admitted; None where it has to wait on."""
        if door.closed or not group.waiting:
            return None
        sequence = group.waiting[0]
        if _left(sequence, plan) <= 0:
            return None
        found = self._find(sequence)
        if self._follows(sequence, group, len(found)):
            return None
        if not self._fits(sequence, found) and not self._makes_room(sequence, found, plan):
            first_class = all(group.rank >= other.rank for other in groups)
            door.refuse(waited_for=self._waited_for(sequence, found, first_class=first_class))
            return None
        self.blocks.hold(found)
        sequence.blocks = found
        sequence.computed = sequence.found = len(found) * BLOCK
        self.found_tokens += sequence.found if not sequence.gave_way else 0
        self.running.append(sequence)
        self.queues.admit(sequence)
        return sequence

    def _find(self, sequence: Sequence) -> list[int]:
        """The blocks of its beginning that are in the cache; the last token is always computed, for its logits."""
        if sequence.reads_anew:
            return []
        self._extend_names(sequence, (len(sequence.tokens) - 1) // BLOCK)
        return self.blocks.find(sequence.names)

    def _follows(self, sequence: Sequence, group: Group, found: int) -> bool:
        """Whether another one is computing the very block that this one would compute first, so that it can soon be
        found: choices of one prompt, or callers who begin alike."""
        if sequence.reads_anew or found >= len(sequence.names):
            return False
        name = sequence.names[found]
        leaders = (other.names for other in group.reading if not other.reads_anew)
        return any(len(names) > found and names[found] == name for names in leaders)

    def _fits(self, sequence: Sequence, found: list[int]) -> bool:
        return len(self.running) < self.max_running and self._missing(sequence, found) <= self._room()

    def _missing(self, sequence: Sequence, found: list[int]) -> int:
        """Blocks to be had for all of its tokens. Those found that nobody holds are not available to others, once."""
        return blocks_for(len(sequence.tokens) + 1) - len(found) + self.blocks.unheld(found)

    def _room(self) -> int:
        """Blocks to be had, beside what running prefills still need and a block more for each that runs, so that a
        sequence which gave way is not computed anew for a few tokens only to give way again."""
        return self.blocks.available - sum(map(_promised, self.running))

    def _makes_room(self, sequence: Sequence, found: list[int], plan: Plan) -> bool:
        """Whether those who have to gave way, so that the sequence fits. Nobody does where it would not help."""
        if len(self.queues.groups) == 1:
            return False
        shares = Shares(self.running, self.max_running, self.blocks.total)
        slots, room = self.max_running - len(self.running), self._room() - self._missing(sequence, found)
        giving: list[Sequence] = []
        for other in shares.weakest_first(lambda other: shares.yields(other, sequence)):
            if slots > 0 and room >= 0:
                break
            if shares.yields(other, sequence):  # still, when those before it have given way
                shares.gone(other)
                giving.append(other)
                slots += 1
                room += _promised(other) + sum(self.blocks.holders(b) == 1 for b in other.blocks if b not in found)
        if slots <= 0 or room < 0:
            return False
        for other in giving:
            self._preempt(other, plan)
        return self._fits(sequence, found)

    def _waited_for(self, sequence: Sequence, found: list[int], *, first_class: bool) -> bool:
        """Whether nobody else is admitted before this one, which does not fit: where nothing of its class runs, or
        where it lacks room and none of a higher class waits. Else a large prompt would never find the room."""
        rank = group_of(sequence).rank
        if all(group_of(other).rank != rank for other in self.running):
            return True
        return first_class and self._missing(sequence, found) > self._room()

    # --- blocks ----------------------------------------------------------------------------------------------

    def _grow(self, sequence: Sequence, tokens: int, plan: Plan) -> bool:
        """Give a running sequence the blocks for so many tokens; False where it had to give way itself."""
        missing = blocks_for(tokens) - len(sequence.blocks)
        while missing > self.blocks.available:
            weakest = Shares(self.running, self.max_running, self.blocks.total).weakest()
            self._preempt(weakest, plan)
            if weakest is sequence:
                return False
        if missing > 0:
            sequence.blocks += self.blocks.take(missing)
        return True

    def _preempt(self, sequence: Sequence, plan: Plan) -> None:
        plan.pop(sequence, None)
        self.running.remove(sequence)
        self._release(sequence)
        self.queues.rejoin(sequence)
        sequence.gave_way += 1
        self.preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = 0

    def _name(self, sequence: Sequence, first: int) -> None:
        """Let the blocks from number `first` on that are full be found."""
        full = sequence.computed // BLOCK
        self._extend_names(sequence, full)
        for i in range(first, full):
            self.blocks.name(sequence.blocks[i], sequence.names[i])

    def _extend_names(self, sequence: Sequence, full: int) -> None:
        self._names.extend(sequence.names, sequence.tokens, full, tenant=sequence.tenant, adapter=sequence.way)


@dataclass(slots=True)
class _Door:
    """Whether others are still admitted in this step, once one did not fit."""

    closed: bool = False
    turn_kept: bool = False
    attempts: int = ATTEMPTS

    def refuse(self, *, waited_for: bool) -> None:
        """One does not fit."""
        self.attempts -= 1
        self.turn_kept |= waited_for
        self.closed = waited_for or not self.attempts


def _promised(sequence: Sequence) -> int:
    """Blocks that a running sequence has yet to get for its tokens, and one more."""
    return blocks_for(len(sequence.tokens) + 1) - len(sequence.blocks) + 1


def _left(sequence: Sequence, plan: Plan) -> int:
    """How many prompt tokens it may read in this step beside those planned for it; those with a limit share it."""
    left = sequence.remaining
    if sequence.slice_limit is not None:
        limited = sum(n for other, n in plan.items() if other.slice_limit is not None and other.remaining > 1)
        left = min(left, sequence.slice_limit - limited + plan.get(sequence, 0))
    return left - plan.get(sequence, 0)
