"""What a request does to the logits before a token is chosen: penalties, bias, and the mask of a grammar.

Every function here writes on the row it is given, a float32 array of one logit per token of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float32]
Bitmask = NDArray[np.int32]

_FIRST_CAPACITY = 64


class TokenCounts:
    """The distinct tokens of one sequence, each with how often it was generated (0: only in the prompt).

    Kept as two parallel arrays, so that penalising costs as much as the sequence has distinct tokens, whatever the
    vocabulary.
    """

    def __init__(self, prompt_ids: Iterable[int] = ()) -> None:
        known = np.unique(np.fromiter(prompt_ids, dtype=np.int64))
        capacity = max(_FIRST_CAPACITY, 2 * known.size)
        self._slots = {token: slot for slot, token in enumerate(known.tolist())}
        self._ids = np.zeros(capacity, dtype=np.int64)
        self._ids[: known.size] = known
        self._counts = np.zeros(capacity, dtype=np.float32)

    def add(self, token: int) -> None:
        """Count one more generated `token`."""
        slot = self._slots.setdefault(token, len(self._slots))
        if slot == self._ids.size:
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[slot] = token
        self._counts[slot] += 1

    @property
    def ids(self) -> NDArray[np.int64]:
        """The distinct tokens, in order of first sight."""
        return self._ids[: len(self._slots)]

    @property
    def counts(self) -> Row:
        """How often each of `ids` was generated."""
        return self._counts[: len(self._slots)]


def penalise(row: Row, tokens: TokenCounts, *, repetition: float, presence: float, frequency: float) -> None:
    """Repetition over all known tokens (a positive logit is divided, a negative one multiplied, as transformers does),
    then presence and frequency subtracted for generated ones, as OpenAI states them."""
    values = row[tokens.ids]
    if repetition != 1.0:
        values = np.where(values > 0, values / np.float32(repetition), values * np.float32(repetition))
    counts = tokens.counts
    values -= np.float32(frequency) * counts + np.float32(presence) * (counts > 0)
    row[tokens.ids] = values


def forbid_unmasked(row: Row, mask: Bitmask) -> None:
    """Set every logit to -inf whose bit in the packed `mask` is not set; a token past the mask's end is forbidden."""
    bits = np.unpackbits(mask.view(np.uint8), count=row.size, bitorder="little")
    row[:] = np.where(bits.view(np.bool_), row, np.float32(-np.inf))


def is_allowed(mask: Bitmask, token: int) -> bool:
    """Whether the packed `mask` allows `token`."""
    word = token >> 5
    return word < mask.size and bool((int(mask[word]) >> (token & 31)) & 1)
