"""Who holds how much of slots and cache, and who therefore gives way to whom.

The share of an organisation, or of an adapter within one, is the larger of its part of the slots and its part of the
blocks (dominant resource fairness: Ghodsi et al., 2011).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from interlace.engines.local.blocks import blocks_for
from interlace.engines.local.fairness import Group, Tenant, group_of
from interlace.engines.local.sequences import Sequence

PATIENCE = 3  # who gave way so often gives way last


class Shares:
    """What the running sequences hold at one moment, of so many slots and blocks."""

    def __init__(self, running: Iterable[Sequence], slots: int, blocks: int) -> None:
        self._whole = slots, blocks
        self._slots: dict[Tenant | Group, int] = defaultdict(int)
        self._blocks: dict[Tenant | Group, int] = defaultdict(int)
        self._running = list(running)[::-1]  # the one admitted last comes first
        for sequence in self._running:
            self._count(sequence, 1, len(sequence.blocks))

    def weakest_first(self, wanted: Callable[[Sequence], bool]) -> list[Sequence]:
        """The wanted ones in the order in which they give way: those of the lowest class, of them those of whoever has
        the largest share, of those the one admitted last; the patient at the end."""
        return sorted(filter(wanted, self._running), key=self._strength)

    def weakest(self) -> Sequence:
        """Of all, the first in that order."""
        return min(self._running, key=self._strength)

    def yields(self, running: Sequence, newcomer: Sequence) -> bool:
        """Whether the one has to make place for the other: it is of a lower class, or its organisation (in the same one
        its adapter) was given no less so far, and has no less even afterwards."""
        if running.gave_way >= PATIENCE:
            return False
        one, other = group_of(running), group_of(newcomer)
        if one is other or one.rank != other.rank:
            return one.rank < other.rank
        if one.tenant is other.tenant:
            return self._yields(one, other, running, newcomer)
        return self._yields(one.tenant, other.tenant, running, newcomer)

    def gone(self, sequence: Sequence) -> None:
        """Count it no more."""
        self._count(sequence, -1, -len(sequence.blocks))

    def _yields(self, one: Tenant | Group, other: Tenant | Group, running: Sequence, newcomer: Sequence) -> bool:
        if one.spent < other.spent:
            return False
        left = self._share(one, -1, -len(running.blocks))
        return left >= self._share(other, 1, blocks_for(len(newcomer.tokens) + 1))

    def _share(self, who: Tenant | Group, slots: int = 0, blocks: int = 0) -> float:
        all_slots, all_blocks = self._whole
        return max((self._slots[who] + slots) / all_slots, (self._blocks[who] + blocks) / all_blocks)

    def _strength(self, sequence: Sequence) -> tuple[bool, int, float, float]:
        group = group_of(sequence)
        return sequence.gave_way >= PATIENCE, group.rank, -self._share(group.tenant), -self._share(group)

    def _count(self, sequence: Sequence, slots: int, blocks: int) -> None:
        group = group_of(sequence)
        for who in (group.tenant, group):
            self._slots[who] += slots
            self._blocks[who] += blocks
