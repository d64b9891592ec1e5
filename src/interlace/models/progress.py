"""How a pull tells what it is doing, whoever listens."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Listener of a pull. `begin` opens one bar; `advance` moves it; `say` is a line of its own."""

    def say(self, text: str) -> None:
        """Something a person wants to know."""
        ...

    def begin(self, label: str, total_bytes: int | None, done_bytes: int = 0) -> None:
        """A file starts; a size of None is not known yet."""
        ...

    def advance(self, count_bytes: int) -> None:
        """So many more bytes of it are there."""
        ...

    def end(self) -> None:
        """The file is complete, or given up."""
        ...


class Silent:
    """Nobody listens."""

    def say(self, text: str) -> None:
        """Drop it."""

    def begin(self, label: str, total_bytes: int | None, done_bytes: int = 0) -> None:
        """Drop it."""

    def advance(self, count_bytes: int) -> None:
        """Drop it."""

    def end(self) -> None:
        """Drop it."""
