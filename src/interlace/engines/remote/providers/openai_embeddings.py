"""A provider's embeddings: rows of numbers, as JSON or as base64, in the order of the inputs.

Numbers are taken in this machine's byte order: every platform Interlace runs on is little-endian.
"""

from __future__ import annotations

import base64
import math
from array import array
from typing import Any

import msgspec

from interlace.engines.remote.usage import prompt_usage
from interlace.engines.remote.wire import ErrorInside
from interlace.engines.types import Embeddings
from interlace.errors import EngineFailed


class WireRow(msgspec.Struct, frozen=True):
    """One embedding."""

    embedding: list[float] | str
    index: int | None = None


class WireEmbeddings(msgspec.Struct, frozen=True):
    """The whole answer."""

    data: list[WireRow] = []
    usage: Any = None
    error: Any = None


_decoder = msgspec.json.Decoder(WireEmbeddings)


def read_embeddings(body: bytes, inputs: int, dimensions: int, prompt_tokens: int) -> Embeddings:
    """The rows of `inputs` inputs, all of one length, `dimensions` where that is not 0. `prompt_tokens` is our
    estimate, for a provider that counts nothing. Raises `EngineFailed` for anything else."""
    try:
        answer = _decoder.decode(body)
        if answer.error:
            raise ErrorInside(body)
        rows = [_row(row.embedding) for row in _in_order(answer.data)]
    except (ValueError, RecursionError):
        raise EngineFailed("The server behind this model sent what are no embeddings. Try again.") from None
    if len(rows) != inputs:
        raise EngineFailed(f"The server behind this model sent {len(rows)} embeddings for {inputs} inputs.")
    sizes = {len(row) // 4 for row in rows}
    if len(sizes) != 1 or 0 in sizes or (dimensions and sizes != {dimensions}):
        raise EngineFailed("The server behind this model sent embeddings of another length than they must have.")
    tokens, estimated = prompt_usage(answer.usage if isinstance(answer.usage, dict) else None, prompt_tokens)
    return Embeddings(tuple(rows), sizes.pop(), tokens, estimated)


def _in_order(rows: list[WireRow]) -> list[WireRow]:
    """By `index`; where none is told, as they came. Raises `ValueError` when the indices are not 0, 1, 2, ..."""
    told = [row.index for row in rows]
    if all(index is None for index in told):
        return rows
    placed = {row.index: row for row in rows}
    if set(placed) != set(range(len(rows))):
        raise ValueError
    return [placed[i] for i in range(len(rows))]


def _row(given: list[float] | str) -> bytes:
    """Little-endian float32, all of them finite; raises `ValueError`."""
    numbers = array("f", base64.b64decode(given, validate=True) if isinstance(given, str) else given)
    if not math.isfinite(sum(numbers)):
        raise ValueError
    return numbers.tobytes()
