"""A table for people, on standard output."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[str] = ()) -> None:
    """Print rows below their headings, those of `right` flush right.

    Nothing is cut, however narrow the terminal: names are there to be copied.
    """
    lines = [tuple(headings), *(tuple(map(_plain, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.rjust(width) if heading in right else cell.ljust(width)
            for heading, cell, width in zip(headings, line, widths, strict=True)
        ]
        print("  ".join(cells).rstrip())  # noqa: T201 - what the command was asked for


def _plain(text: str) -> str:
    """Text of a server or a file for a terminal: control characters shown, not obeyed."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
