"""Who goes first: classes by priority, and within a class organisations, and within those adapters, by virtual time.

Each sequence belongs to a group: its class, its organisation, its adapter. Every token computed for a group counts for
it and for its organisation; whoever had fewest goes first (start-time fair queueing: Goyal, Vin and Cheng, 1996). Who
comes anew starts level with the others, so nobody saves up claims by being idle, nor pays for what it had while alone.

Of eight turns seven belong to the highest class that has something to read, the eighth to the next one down, and of
eight of those, one to the one below that. So the lowest of four gets at least one in 512, and nobody waits for ever.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from interlace.engines.local.sequences import Sequence
from interlace.engines.types import BATCH_PRIORITY

CLASSES = ("batch", "low", "normal", "high")
TURNS = 8  # of so many, the highest class has all but one


def class_of(priority: int) -> int:
    """The index in `CLASSES`: batches are the lowest, then priorities below zero, zero and above."""
    if priority <= BATCH_PRIORITY:
        return 0
    return 1 + (priority >= 0) + (priority > 0)


@dataclass(eq=False)
class Tenant:
    """An organisation in one class, and the tokens computed for it, in virtual time."""

    spent: int = 0
    groups: set[Group] = field(default_factory=set)

    @property
    def behind(self) -> bool:
        """Whether it has something to read."""
        return any(group.behind for group in self.groups)


@dataclass(eq=False)
class Group:
    """Sequences of one class, organisation and adapter: those that wait, and of the running those whose prompt is being
    read, both in order. `members` counts those that decode, too."""

    rank: int
    tenant: Tenant
    key: tuple[int, str, str]
    spent: int = 0
    members: int = 0
    waiting: deque[Sequence] = field(default_factory=deque)
    reading: list[Sequence] = field(default_factory=list)

    @property
    def behind(self) -> bool:
        """Whether it has something to read."""
        return bool(self.waiting or self.reading)

    def charge(self, tokens: int) -> None:
        """Count tokens that are computed for it."""
        self.spent += tokens
        self.tenant.spent += tokens


class Queues:
    """All groups that have a sequence, waiting or running."""

    def __init__(self) -> None:
        self.groups: dict[tuple[int, str, str], Group] = {}
        self.waiting_count = 0
        self._tenants: dict[tuple[int, str], Tenant] = {}
        self._turn = 1

    def join(self, sequence: Sequence) -> None:
        """A new sequence waits, behind its group's others."""
        group = sequence.group = self._group(sequence)
        self._rouse(group)
        group.members += 1
        group.waiting.append(sequence)
        self.waiting_count += 1

    def admit(self, sequence: Sequence) -> None:
        """The first that waits in its group runs now."""
        group = group_of(sequence)
        assert group.waiting.popleft() is sequence
        self.waiting_count -= 1
        if sequence.remaining > 1:
            group.reading.append(sequence)

    def read(self, sequence: Sequence) -> None:
        """The prompt of a running sequence is read to its end."""
        reading = group_of(sequence).reading
        if sequence in reading:
            reading.remove(sequence)

    def rejoin(self, sequence: Sequence) -> None:
        """A running sequence waits again, before its group's others."""
        group = group_of(sequence)
        if sequence in group.reading:
            group.reading.remove(sequence)
        self._rouse(group)
        group.waiting.appendleft(sequence)
        self.waiting_count += 1

    def leave(self, sequence: Sequence) -> None:
        """A sequence is gone, wherever it was."""
        group, sequence.group = group_of(sequence), None
        if sequence in group.reading:
            group.reading.remove(sequence)
        elif sequence in group.waiting:
            group.waiting.remove(sequence)
            self.waiting_count -= 1
        group.members -= 1
        if group.members == 0:
            del self.groups[group.key]
            group.tenant.groups.remove(group)
            if not group.tenant.groups:
                del self._tenants[group.key[:2]]

    def waiting(self) -> Iterator[Sequence]:
        """Everyone who waits, in no order across groups."""
        for group in self.groups.values():
            yield from group.waiting

    def waiting_by_group(self) -> Counter[tuple[str, str]]:
        """How many wait of each organisation and adapter."""
        counts: Counter[tuple[str, str]] = Counter()
        for group in self.groups.values():
            counts[group.key[1:]] += len(group.waiting)
        return counts

    def waiting_by_class(self) -> dict[str, int]:
        """How many wait of each class."""
        counts = dict.fromkeys(CLASSES, 0)
        for group in self.groups.values():
            counts[CLASSES[group.rank]] += len(group.waiting)
        return counts

    def behind(self) -> list[Group]:
        """The groups that have something to read."""
        return [group for group in self.groups.values() if group.waiting or group.reading]

    def first(self, groups: list[Group]) -> Group:
        """Of these, at least one, the one whose turn it is."""
        if len(groups) == 1:
            return groups[0]
        ranks = sorted({group.rank for group in groups}, reverse=True)
        rank = ranks[min(self._steps_down(), len(ranks) - 1)]
        return min((g for g in groups if g.rank == rank), key=_so_far)

    def turn_taken(self) -> None:
        """Whoever had the turn used it."""
        self._turn += 1

    def _steps_down(self) -> int:
        """How many classes below the highest the turn is: how often `TURNS` divides its number."""
        steps, turn = 0, self._turn
        while turn % TURNS == 0:
            steps, turn = steps + 1, turn // TURNS
        return steps

    def _group(self, sequence: Sequence) -> Group:
        rank = class_of(sequence.priority)
        key = (rank, sequence.tenant, sequence.adapter)
        if (group := self.groups.get(key)) is None:
            tenant = self._tenants.setdefault(key[:2], Tenant())
            group = self.groups[key] = Group(rank, tenant, key)
            tenant.groups.add(group)
        return group

    def _rouse(self, group: Group) -> None:
        """Who had nothing to read and now does starts level with those that have."""
        if group.behind:
            return
        tenant = group.tenant
        if not tenant.behind:
            rivals = [other for (rank, _), other in self._tenants.items() if rank == group.rank and other is not tenant]
            tenant.spent = max(tenant.spent, _level(rivals))
        group.spent = max(group.spent, _level([other for other in tenant.groups if other is not group]))


def group_of(sequence: Sequence) -> Group:
    """The group of a sequence that waits or runs."""
    assert sequence.group is not None
    return sequence.group


def _so_far(group: Group) -> tuple[int, int]:
    return group.tenant.spent, group.spent


def _level(rivals: list[Tenant] | list[Group]) -> int:
    """Where the one stands that is next among rivals; where none has anything to read, the furthest."""
    behind = [rival.spent for rival in rivals if rival.behind]
    return min(behind) if behind else max((rival.spent for rival in rivals), default=0)
