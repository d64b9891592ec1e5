"""How far a run is: a moving bar on a terminal, a line now and then elsewhere; on standard error."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as RichProgress

from interlace.tuning.events import AnyEvent, Held, Note, Stage, Step

LINE_SECONDS = 10.0


def span(seconds: float) -> str:
    """For people: "42 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def step_words(step: Step) -> str:
    """A step in one line."""
    return (
        f"loss {step.loss:.3f}, {step.tokens_per_second:,.0f} tokens/s, {span(step.seconds_left)} left, "
        f"{step.memory_bytes / 1e9:.1f} GB"
    )


class Bar:
    """A bar over the steps. A context manager, because the terminal must be given back."""

    def __init__(self) -> None:
        self._bar = RichProgress(
            BarColumn(bar_width=20), TaskProgressColumn(), TextColumn("{task.description}"),
            console=Console(stderr=True), transient=True, refresh_per_second=4,
        )  # fmt: skip
        self._task = self._bar.add_task("beginning", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def hear(self, event: AnyEvent) -> None:
        """Show it."""
        if isinstance(event, Step):
            words = f"step {event.step}/{event.steps}: {step_words(event)}"
            self._bar.update(self._task, total=event.steps, completed=event.step, description=words)
        elif isinstance(event, Stage):
            self._bar.update(self._task, description=event.text)
        elif isinstance(event, Held):
            best = ", the best so far" if event.best else ""
            self._say(f"step {event.step}: held-out loss {event.loss:.3f}{best}")
        elif isinstance(event, Note):
            self._say(event.text)

    def _say(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)


class Lines:
    """Lines for logs and pipes."""

    def __init__(self) -> None:
        self._next = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def hear(self, event: AnyEvent) -> None:
        """Print it, or nothing where the last line is young."""
        if isinstance(event, Step):
            if time.monotonic() >= self._next or event.step == event.steps:
                self._next = time.monotonic() + LINE_SECONDS
                self._say(f"step {event.step}/{event.steps}: {step_words(event)}")
        elif isinstance(event, Held):
            best = ", the best so far" if event.best else ""
            self._say(f"step {event.step}: held-out loss {event.loss:.3f}{best}")
        elif isinstance(event, Stage | Note):
            self._say(event.text)

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - it speaks to the person at the terminal


def progress_for_people() -> Bar | Lines:
    """A bar where standard error is a terminal, lines elsewhere."""
    return Bar() if sys.stderr.isatty() else Lines()
