"""What a check says, and what it is given to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from interlace.config import Settings

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `warn`: it works, but not for long or not well; `fail`: it does not work. Both say
    what to do."""

    status: Status
    what: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """What is examined, and how closely. `config` is the file, if there is one."""

    settings: Settings
    config: Path | None
    env: Mapping[str, str]
    url: str
    key: str | None = None
    min_free_bytes: int = 1 << 30
    price_days: int = 180
    running: bool = False
    paid: bool = False


Check = Callable[[Case], Iterator[Finding]]


def ok(what: str) -> Finding:
    """All is well."""
    return Finding("ok", what)


def warn(what: str, mend: str) -> Finding:
    """It works, but."""
    return Finding("warn", what, mend)


def fail(what: str, mend: str) -> Finding:
    """It does not work."""
    return Finding("fail", what, mend)
