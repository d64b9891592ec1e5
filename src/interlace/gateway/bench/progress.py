"""How far a measurement is: a moving bar on a terminal, a line for each level elsewhere; on standard error."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from interlace.gateway.bench.figures import Level
from interlace.gateway.bench.plan import Plan


def streams_of(level: Level) -> str:
    """In words."""
    return "1 stream" if level.streams == 1 else f"{level.streams} streams"


class Bar:
    """One bar over all levels, by tokens. A context manager, because the terminal must be given back."""

    def __init__(self, plan: Plan) -> None:
        self._each = plan.rounds * plan.tokens
        self._bar = RichProgress(
            TextColumn("{task.description:36}"), BarColumn(bar_width=24), TaskProgressColumn(), TimeElapsedColumn(),
            console=Console(stderr=True), transient=True, refresh_per_second=4,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=self._each * sum(plan.streams))
        self._before = 0
        self._level = Level(0)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def warming(self, level: Level) -> None:
        """A level begins."""
        self._before += self._each * self._level.streams
        self._level = level
        self._bar.update(self._task, completed=self._before, description=f"{streams_of(level)}: warming up")

    def measuring(self, level: Level) -> None:
        """Its clock runs."""
        self._bar.update(self._task, description=streams_of(level))

    def moved(self) -> None:
        """Show what came since."""
        if tokens := self._level.tokens:
            failed = len(self._level.errors)
            more = f", {failed} failed" if failed else ""
            said = f"{streams_of(self._level)}: {tokens:,} tokens{more}"
            self._bar.update(self._task, completed=self._before + tokens, description=said)


class Lines:
    """For logs and pipes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def warming(self, level: Level) -> None:
        """Nothing is said."""

    def measuring(self, level: Level) -> None:
        """A line."""
        print(f"Measuring {streams_of(level)} ...", file=sys.stderr, flush=True)  # noqa: T201 - it is for a person

    def moved(self) -> None:
        """Nothing is said."""


def progress_for_people(plan: Plan) -> Bar | Lines:
    """A bar where standard error is a terminal."""
    return Bar(plan) if sys.stderr.isatty() else Lines()
