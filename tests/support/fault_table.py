"""`make faults`: what became of the fault matrix, as a table in the terminal and in `docs/benchmarks/faults.md`.

A plugin of pytest: it sees reports where they arrive, from whichever process.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from benchmarks.machine import describe, lines

COLUMNS = ("streamed-1", "whole-1", "streamed-3", "whole-3")
TITLES = ("streamed, 1 process", "whole, 1 process", "streamed, 3 processes", "whole, 3 processes")
FILE = Path(__file__).parents[2] / "docs" / "benchmarks" / "faults.md"
_CELL = re.compile(r"test_matrix\.py::test_cell\[(.+)-((?:streamed|whole)-\d)\]")


@dataclass
class Cell:
    """One cell: its end so far, and how long it took."""

    end: str = "ok"
    seconds: float = 0.0
    why: str = ""

    def __str__(self) -> str:
        """As the table has it."""
        return self.end if self.end == "skipped" else f"{self.end} {self.seconds:.0f} s"


@dataclass
class Table:
    """All of them."""

    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)

    def take(self, report: pytest.TestReport) -> None:
        """One phase of one test."""
        if (found := _CELL.search(report.nodeid)) is None:
            return
        cell = self.cells.setdefault((found[1], found[2]), Cell())
        cell.seconds += report.duration
        if report.failed:
            cell.end = "FAILED"
        elif report.skipped and cell.end == "ok":
            cell.end = "skipped"
            cell.why = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""

    def rows(self) -> list[list[str]]:
        """A row of texts for each fault, in the order of the matrix; the last is why cells were skipped."""
        from tests.support.faults import FAULTS

        rows = []
        for name in (fault.name for fault in FAULTS):
            cells = [self.cells.get((name, column)) for column in COLUMNS]
            why = sorted({cell.why for cell in cells if cell is not None and cell.why})
            rows.append([name, *(str(cell) if cell else "" for cell in cells), "; ".join(why)])
        return rows


_table = Table()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Called by pytest."""
    _table.take(report)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Called by pytest, last."""
    rows = [["fault", *TITLES, "skipped because"], *_table.rows()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    padded = [[text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in rows]
    padded.insert(1, ["-" * width for width in widths])
    terminalreporter.section("faults")
    for row in padded:
        terminalreporter.line("  ".join(row).rstrip())
    if all(len([cell for cell in row[1:-1] if cell]) == len(COLUMNS) for row in rows):  # not a part of it only
        about = describe() | {"versions": {}}
        text = ["| " + " | ".join(row) + " |" for row in padded]
        FILE.write_text("\n".join([*text, "", next(iter(lines(about))) + "."]) + "\n")
        terminalreporter.line(f"This table: {FILE}")
