"""What an operation is: an administrative verb, written once for the command line and for the admin API."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from interlace.ledger.operations.words import Input
from interlace.ledger.registry import Registry


@dataclass(frozen=True, slots=True)
class Operation:
    """`run` does it: (open ledger, an instance of `input`) → an instance of `output`. It may wait for the disk.

    `path` is below `/admin/v1`; what it names in braces are fields of the input, and so are the query's parameters of a
    GET and the body's fields of anything else. Raises `InterlaceError`s only. `looks_only`: it reads what the running
    server has in memory, so it runs on its event loop, and changes nothing. `runs_here`: `run` is a coroutine function
    that changes the running server, awaited on its loop.
    """

    name: str
    method: str
    path: str
    about: str
    input: type[Input]
    output: Any
    run: Callable[[Registry, Any], Any]
    looks_only: bool = False
    runs_here: bool = False

    @property
    def in_path(self) -> tuple[str, ...]:
        """The fields that the path names."""
        return tuple(re.findall(r"\{(\w+)\}", self.path))
