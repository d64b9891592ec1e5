"""A held-out part of one file: the same rows on any machine, in any order of the file, whatever else is in it."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from interlace.tuning.examples import Example, Examples


def split(examples: Examples, *, held_out: float = 0.1, seed: int = 0) -> tuple[Examples, Examples]:
    """The rows to train on, and about a share `held_out` of them (0 < `held_out` < 1) to score by, both in the order
    of the file.

    Where a row goes depends on the seed and on what is asked in it, in normal form, and on nothing else. So rows that
    ask the same stay together, and a row that is added moves no other. A small file may come out with an empty part:
    `check` says so. The problems stay with the first.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is a share between 0 and 1, not {held_out}")
    kept: list[Example] = []
    out: list[Example] = []
    for row in examples.rows:
        (out if _place(row, seed) < held_out else kept).append(row)
    return replace(examples, rows=tuple(kept)), replace(examples, rows=tuple(out), problems=())


def _place(row: Example, seed: int) -> float:
    """Even between 0 and 1."""
    digest = hashlib.sha256(f"{seed}:".encode() + row.prompt_digest).digest()
    return int.from_bytes(digest[:8]) / 2**64
