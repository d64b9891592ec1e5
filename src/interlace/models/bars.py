"""Progress for people: moving bars on a terminal, a line now and then elsewhere; all of it on standard error."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as RichProgress

from interlace.models.room import gigabytes

LINE_SECONDS = 5.0
LABEL_WIDTH, BAR_WIDTH = 28, 14  # with size, speed and time left, a bar then fits a terminal of 80 columns


class TerminalProgress:
    """Bars on a terminal. A context manager, because the terminal must be given back."""

    def __init__(self) -> None:
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=BAR_WIDTH),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Print above the bars."""
        self._bars.console.print(text, markup=False, highlight=False)

    def begin(self, label: str, total_bytes: int | None, done_bytes: int = 0) -> None:
        """Open a bar."""
        short = label if len(label) <= LABEL_WIDTH else label[: LABEL_WIDTH - 1] + "…"
        self._task = self._bars.add_task(escape(short), total=total_bytes, completed=done_bytes)

    def advance(self, count_bytes: int) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bars.advance(self._task, count_bytes)

    def end(self) -> None:
        """Leave the bar as it stands."""
        self._task = None


class PlainProgress:
    """Lines for logs and pipes: at the start, every few seconds, and at the end of each file."""

    def __init__(self) -> None:
        self._label = ""
        self._total: int | None = None
        self._done = 0
        self._next_line = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - it speaks to the person at the terminal

    def begin(self, label: str, total_bytes: int | None, done_bytes: int = 0) -> None:
        """Remember the file."""
        self._label, self._total, self._done = label, total_bytes, done_bytes
        self._next_line = time.monotonic() + LINE_SECONDS

    def advance(self, count_bytes: int) -> None:
        """Print a line when the last one is old."""
        self._done += count_bytes
        if time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_SECONDS
            self._line()

    def end(self) -> None:
        """Print where the file stands."""
        self._line()

    def _line(self) -> None:
        of = f" of {gigabytes(self._total)} ({100 * self._done // max(self._total, 1)} %)" if self._total else ""
        self.say(f"{self._label}: {gigabytes(self._done)}{of}")


def progress_for_people() -> TerminalProgress | PlainProgress:
    """Bars where standard error is a terminal, plain lines elsewhere."""
    return TerminalProgress() if sys.stderr.isatty() else PlainProgress()


class ShareBar:
    """A bar for one thing that is done by and by."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=BAR_WIDTH),
            TextColumn("{task.percentage:.0f} %"),
        )
        self._bars = RichProgress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bars.add_task("", total=1.0)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def tell(self, text: str, share: float) -> None:
        """What is being done, and how much of everything is done, from 0 to 1."""
        self._bars.update(self._task, description=escape(text), completed=share)


class ShareLines:
    """The same as lines, one for each thing that begins."""

    def __init__(self) -> None:
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def tell(self, text: str, share: float) -> None:
        """Print a line where the text is another."""
        if text != self._last:
            self._last = text
            print(f"{text} ({share:.0%})", file=sys.stderr, flush=True)  # noqa: T201 - for the person at the terminal


def share_for_people() -> ShareBar | ShareLines:
    """A bar where standard error is a terminal, plain lines elsewhere."""
    return ShareBar() if sys.stderr.isatty() else ShareLines()
