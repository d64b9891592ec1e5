"""From single measurements to what may be said of them: medians, and ratios taken pair by pair within a round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of several rounds with the least and the greatest of them."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ValueError where there is nothing to summarise."""
        if not values:
            raise ValueError("no measurements")
        return cls(median(values), min(values), max(values), len(values))

    def text(self, digits: int) -> str:
        """`12.3 (11.9–12.8)`; of a single round no spread is known, and none is shown."""
        if self.rounds == 1:
            return f"{self.median:,.{digits}f}"
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f}–{self.high:,.{digits}f})"


def paired_ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """ours / theirs of each round. Neighbours in time are compared, so slow drift of the machine cancels out, which it
    would not in the ratio of two medians."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} rounds on one side, {len(theirs)} on the other")
    return [a / b for a, b in zip(ours, theirs, strict=True)]


@dataclass(frozen=True, slots=True)
class Rate:
    """Tokens per second of one contestant at one shape, a value per round."""

    phase: str
    shape: str
    contestant: str
    values: tuple[float, ...]

    @property
    def spread(self) -> Spread:
        """Over all rounds."""
        return Spread.of(self.values)


@dataclass(frozen=True, slots=True)
class AtMost:
    """A goal that a ratio must not exceed; a bare number is one that it must reach."""

    ratio: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """One contestant held against another at one shape, and the ratio that was promised (None: for information)."""

    phase: str
    shape: str
    contestant: str
    against: str
    ratio: Spread
    goal: float | AtMost | None

    @property
    def met(self) -> bool | None:
        """Whether the median keeps the promise; None without one."""
        if isinstance(self.goal, AtMost):
            return self.ratio.median <= self.goal.ratio
        return None if self.goal is None else self.ratio.median >= self.goal

    @property
    def promise(self) -> str:
        """The goal for people, empty without one."""
        if isinstance(self.goal, AtMost):
            return f"≤ {self.goal.ratio:g}"
        return "" if self.goal is None else f"≥ {self.goal:g}"

    def json(self) -> dict[str, Any]:
        """All fields and the verdict; a goal that is an upper bound is called `most`."""
        goal = {"most": self.goal.ratio} if isinstance(self.goal, AtMost) else {"goal": self.goal}
        fields = asdict(self)
        del fields["goal"]
        return fields | goal | {"met": self.met}


@dataclass(frozen=True, slots=True)
class Bound:
    """An amount with the most that was promised (None: for information)."""

    phase: str
    shape: str
    contestant: str
    amount: Spread
    most: float | None

    @property
    def met(self) -> bool | None:
        """Whether the median stays below the promise; None without one."""
        return None if self.most is None else self.amount.median <= self.most

    def json(self) -> dict[str, Any]:
        """All fields and the verdict."""
        return asdict(self) | {"met": self.met}


@dataclass(frozen=True, slots=True)
class Added:
    """How much more one contestant takes than another at one shape, and the most that was promised (None: for
    information)."""

    phase: str
    shape: str
    contestant: str
    against: str
    amount: Spread
    most: float | None

    @property
    def met(self) -> bool | None:
        """Whether the median stays below the promise; None without one."""
        return None if self.most is None else self.amount.median <= self.most

    def json(self) -> dict[str, Any]:
        """All fields and the verdict."""
        return asdict(self) | {"met": self.met}


def _together(ours: Rate, theirs: Rate) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Their values of the rounds that both took part in: whoever drops out does so for good."""
    rounds = min(len(ours.values), len(theirs.values))
    return ours.values[:rounds], theirs.values[:rounds]


def added(rates: Sequence[Rate], phase: str, contestant: str, against: str, most: float | None) -> list[Added]:
    """What `contestant` takes beyond `against` in one phase, round by round."""
    of_phase = [rate for rate in rates if rate.phase == phase]
    theirs = {rate.shape: rate for rate in of_phase if rate.contestant == against}
    found = []
    for ours in of_phase:
        if ours.contestant == contestant and ours.shape in theirs:
            more = [a - b for a, b in zip(*_together(ours, theirs[ours.shape]), strict=True)]
            found.append(Added(phase, ours.shape, contestant, against, Spread.of(more), most))
    return found


def compare(rates: Sequence[Rate], contestant: str, against: str, goal: float | AtMost | None) -> list[Comparison]:
    """Hold one contestant against another at each shape both were measured at."""
    theirs = {(rate.phase, rate.shape): rate for rate in rates if rate.contestant == against}
    return [
        Comparison(
            ours.phase,
            ours.shape,
            contestant,
            against,
            Spread.of(paired_ratios(*_together(ours, theirs[ours.phase, ours.shape]))),
            goal,
        )
        for ours in rates
        if ours.contestant == contestant and (ours.phase, ours.shape) in theirs
    ]
