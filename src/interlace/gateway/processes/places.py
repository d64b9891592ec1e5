"""Where the processes of one installation meet: the folder `run` in its home, which only its owner can enter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from interlace.engines.host import short_address


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder; `make` it once."""

    path: Path

    @classmethod
    def of(cls, home: Path) -> RunFolder:
        """That of a home folder."""
        return cls(home / "run")

    def make(self) -> None:
        """There, and private."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path.chmod(0o700)

    def lock(self, worker: str) -> Path:
        """The file whose lock a worker holds as long as it lives."""
        return self.path / f"{worker}.lock"

    def workers(self) -> list[str]:
        """Those that have left a lock file."""
        return [file.stem for file in self.path.glob("w*.lock")]

    @contextmanager
    def socket(self, name: str = "coordinator") -> Iterator[str]:
        """An address for `bind` or `connect` while inside."""
        with short_address(self.place(name)) as address:
            yield address

    def place(self, name: str) -> Path:
        """Where that socket is."""
        return self.path / f"{name}.sock"

    def remove_socket(self, name: str = "coordinator") -> None:
        """What a process before us left."""
        with contextlib.suppress(FileNotFoundError):
            self.place(name).unlink()
