"""Who of those who wait for a place goes next, and who gives way when too many wait: fair between organisations, and
within one between the models and adapters that its requests name.

The greater priority goes first. Among equals the next place is the organisation's that holds fewest, of several the
one's that was given its last one longest ago; within it, by the same rule, one model's; and there, whoever came
first. What is shared are places held, not turns taken: whose requests take longer gets no more of the server for it.

When the queue is full, the longest of them gives (longest queue drop: Suter, Lakshman, Stiliadis and Choudhury,
1998): the organisation with the most that wait loses the last one of its model with the most, as long as it keeps no
fewer than the newcomer's then has. So each may fill what nobody else wants, and none can have another refused by it.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple


class Who(NamedTuple):
    """For whom a place is: an organisation, and which of its models or adapters."""

    organisation: str = ""
    model: str = ""


class Turn(NamedTuple):
    """One that waits: in order of priority, then arrival. `told` says whether it has a place, once that is known;
    `stays`: it was admitted before, and does not give way."""

    rank: int
    arrival: int
    who: Who
    told: asyncio.Future[bool]
    stays: bool


@dataclass(eq=False, slots=True)
class _Line:
    """What a model of an organisation holds, and who waits for it, in order."""

    held: int = 0
    last: int = 0  # the number of the place that it was given last
    queue: list[Turn] = field(default_factory=list)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self.queue)


@dataclass(eq=False, slots=True)
class _Organisation:
    """What an organisation holds, and how many wait for it."""

    held: int = 0
    last: int = 0
    waiting: int = 0
    lines: dict[str, _Line] = field(default_factory=dict)


class Places:
    """What everybody holds, and those who wait. Of who neither holds nor waits nothing is kept."""

    def __init__(self) -> None:
        self._organisations: dict[str, _Organisation] = {}
        self._given = self._arrivals = 0
        self.waiting = 0

    def give(self, who: Who) -> None:
        """One more place is held."""
        organisation, line = self._find(who)
        self._given += 1
        organisation.held, organisation.last = organisation.held + 1, self._given
        line.held, line.last = line.held + 1, self._given

    def take_back(self, who: Who) -> None:
        """One place fewer is held."""
        organisation, line = self._find(who)
        organisation.held -= 1
        line.held -= 1
        self._forget(who, organisation, line)

    def holds_none(self, organisation: str) -> bool:
        """Whether nothing runs of the organisation."""
        known = self._organisations.get(organisation)
        return known is None or not known.held

    def join(self, who: Who, priority: int, told: asyncio.Future[bool], *, stays: bool) -> Turn:
        """One more waits."""
        organisation, line = self._find(who)
        self._arrivals += 1
        turn = Turn(-priority, self._arrivals, who, told, stays)
        bisect.insort(line.queue, turn, key=_order)
        organisation.waiting += 1
        self.waiting += 1
        return turn

    def leave(self, turn: Turn) -> None:
        """It waits no more, for whatever reason; nothing where it did not."""
        organisation, line = self._find(turn.who)
        at = bisect.bisect_left(line.queue, _order(turn), key=_order)
        if line.queue[at : at + 1] == [turn]:
            del line.queue[at]
            organisation.waiting -= 1
            self.waiting -= 1
        self._forget(turn.who, organisation, line)

    def next(self, *, only_without: bool = False) -> Turn | None:
        """Whose turn it is; `only_without`: of organisations that hold nothing. None: nobody waits."""
        lines = [
            (organisation, line)
            for organisation in self._organisations.values()
            if organisation.waiting and not (only_without and organisation.held)
            for line in organisation.lines.values()
            if line.queue
        ]
        return min(lines, key=_claim)[1].queue[0] if lines else None

    def gives_way(self, who: Who) -> Turn | None:
        """Who of those who wait makes room for one more of `who`; None: nobody has to."""
        own = self._organisations.get(who.organisation, _Organisation())
        longest = max(self._organisations.values(), key=lambda one: one.waiting, default=own)
        if longest.waiting <= own.waiting + 1:  # it would have fewer than the newcomer's: then only among one's own
            longest, least = own, own.lines.get(who.model, _Line()).waiting + 2
        else:
            least = 1
        line = max(longest.lines.values(), key=lambda one: one.waiting, default=None)
        if line is None or line.waiting < least:
            return None
        return next(_latest(line), None)

    def _find(self, who: Who) -> tuple[_Organisation, _Line]:
        organisation = self._organisations.get(who.organisation)
        if organisation is None:
            organisation = self._organisations[who.organisation] = _Organisation()
        line = organisation.lines.get(who.model)
        if line is None:
            line = organisation.lines[who.model] = _Line()
        return organisation, line

    def _forget(self, who: Who, organisation: _Organisation, line: _Line) -> None:
        if not (line.held or line.queue):
            del organisation.lines[who.model]
        if not (organisation.held or organisation.waiting):
            del self._organisations[who.organisation]


def _order(turn: Turn) -> tuple[int, int]:
    return turn.rank, turn.arrival


def _claim(one: tuple[_Organisation, _Line]) -> tuple[int, ...]:
    organisation, line = one
    return line.queue[0].rank, organisation.held, organisation.last, line.held, line.last, line.queue[0].arrival


def _latest(line: _Line) -> Iterator[Turn]:
    """Those of a line that may go, the last one first."""
    return (turn for turn in reversed(line.queue) if not turn.stays)
