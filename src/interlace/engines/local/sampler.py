"""Choosing the next token of each running sequence from the logits of one step. numpy only.

For one row, in this order: repetition penalty (prompt and output), presence and frequency penalties (output), logit
bias, the grammar's mask, temperature, top_k, top_p, min_p, then a race of the tokens left
(`survivors.draw`). Temperature 0 takes the largest logit after the mask, ties by lowest id, and draws nothing.

Rows never meet: each is computed alone, bit for bit the same in any batch, so a seed gives the same tokens whatever
runs beside it. A row that cannot be sampled (NaN or infinite logits, a mask that allows nothing) yields an
`EngineFailed` in its place and leaves the others as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from interlace.engines.local.logit_edits import Bitmask, TokenCounts, forbid_unmasked, is_allowed, penalise
from interlace.engines.local.logprobs import Top, raw_logprobs
from interlace.engines.local.survivors import draw, fill_weights, scratch_for
from interlace.engines.types import Sampling
from interlace.errors import EngineFailed, InvalidRequest

Row = NDArray[np.float32]
Logits = NDArray[np.float32]  # [rows, vocabulary]

_SEED_BITS = 64
_NOT_FINITE = (
    "The model computed logits that are not finite for this {}: numbers of its weights, or of its adapter, are too "
    "large. Serve an adapter or a checkpoint whose training did not diverge."
)


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen token; `logprob` and `top` (best first) are of the raw distribution, and only there if asked for."""

    id: int
    logprob: float | None = None
    top: Top = ()


@dataclass(slots=True)
class SamplerState:
    """What choosing tokens for one choice of one request remembers from step to step."""

    sampling: Sampling
    generator: np.random.Generator
    tokens: TokenCounts | None  # only while a penalty is on
    bias_ids: NDArray[np.int64]
    bias: Row

    @classmethod
    def create(cls, sampling: Sampling, vocabulary: int, prompt_ids: Sequence[int], choice: int) -> SamplerState:
        """The state before the first token of choice number `choice`; raises `InvalidRequest` as `check_sampling`.

        With a seed the draws depend on (seed, choice) alone, without one on fresh entropy of the system.
        """
        check_sampling(sampling, vocabulary)
        return cls(
            sampling=sampling,
            generator=_generator(sampling.seed, choice),
            tokens=_counts(sampling, vocabulary, prompt_ids),
            bias_ids=np.fromiter(sampling.logit_bias.keys(), dtype=np.int64),
            bias=np.fromiter(sampling.logit_bias.values(), dtype=np.float32),
        )

    def observe(self, token: int) -> None:
        """Take note that `token` was generated."""
        if self.tokens is not None:
            self.tokens.add(token)

    def edits_logits(self) -> bool:
        """Whether a penalty or a bias changes the logits of every step."""
        return self.tokens is not None or self.bias_ids.size > 0

    def edit(self, row: Row) -> None:
        """Apply penalties, then bias, to the logits in `row`."""
        if self.tokens is not None:
            penalise(
                row,
                self.tokens,
                repetition=self.sampling.repetition_penalty,
                presence=self.sampling.presence_penalty,
                frequency=self.sampling.frequency_penalty,
            )
        row[self.bias_ids] += self.bias


def check_sampling(sampling: Sampling, vocabulary: int) -> None:
    """Raise `InvalidRequest`, naming the field, for a value that cannot be sampled with."""
    _check("temperature", sampling.temperature, 0.0, None)
    _check("top_p", sampling.top_p, 0.0, 1.0)
    _check("min_p", sampling.min_p, 0.0, 1.0)
    _check("top_k", sampling.top_k, -1, None)
    _check("repetition_penalty", sampling.repetition_penalty, 0.0, None)
    if sampling.repetition_penalty == 0.0:
        raise InvalidRequest("repetition_penalty must be above 0; 1 turns it off.", param="repetition_penalty")
    _check("presence_penalty", sampling.presence_penalty, -2.0, 2.0)
    _check("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0)
    _check("logprobs", sampling.logprobs or 0, 0, None)
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < vocabulary:
            raise InvalidRequest(
                f"logit_bias names token {token}, but this model's tokens are 0 to {vocabulary - 1}.",
                param="logit_bias",
            )
        _check("logit_bias", bias, -100.0, 100.0)


def _check(field: str, value: float, low: float, high: float | None) -> None:
    """Raise `InvalidRequest` unless `value` is a finite number from `low` to `high` (None: no bound)."""
    if not isfinite(value) or value < low or (high is not None and value > high):
        bounds = f"at least {low:g}" if high is None else f"from {low:g} to {high:g}"
        raise InvalidRequest(f"{field} must be a finite number {bounds}, not {value}.", param=field)


def _generator(seed: int | None, choice: int) -> np.random.Generator:
    if seed is None:
        return np.random.Generator(np.random.PCG64())
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed % 2**_SEED_BITS, choice])))


def _counts(sampling: Sampling, vocabulary: int, prompt_ids: Sequence[int]) -> TokenCounts | None:
    """Counts where a penalty is on; the prompt counts for repetition alone."""
    if sampling.repetition_penalty != 1.0:
        if prompt_ids and not 0 <= min(prompt_ids) <= max(prompt_ids) < vocabulary:
            raise InvalidRequest(
                f"The prompt has token ids outside this model's 0 to {vocabulary - 1}.", param="prompt"
            )
        return TokenCounts(prompt_ids)
    if sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0:
        return TokenCounts()
    return None


def sample(
    logits: Logits, states: Sequence[SamplerState], masks: Sequence[Bitmask | None]
) -> list[Sampled | EngineFailed]:
    """Choose one token for each row of `logits`, which is read only.

    `masks[i]` is packed 32 tokens a word (bit set: allowed), as llguidance fills it; None allows all. A draw advances
    its state's generator by the same number of numbers always; call `observe` on the state once the token is accepted.
    """
    best = logits.argmax(axis=1)  # of a row with a NaN: the first NaN
    peaks = np.take_along_axis(logits, best[:, None], axis=1)[:, 0]
    raws = map(_Raw, logits, best.tolist(), peaks.tolist())
    scratch = scratch_for(logits.shape[1])
    with np.errstate(over="ignore", under="ignore"):  # far-off tokens weigh 0, an overflow is found in `_choose`
        return [_sample_row(*given, scratch) for given in zip(raws, states, masks, strict=True)]


class _Raw(NamedTuple):
    """One row of logits as the model computed it, with its largest value."""

    logits: Row
    best: int
    peak: float


def _sample_row(raw: _Raw, state: SamplerState, mask: Bitmask | None, scratch: Row) -> Sampled | EngineFailed:
    """Choose from one row, and look up its logprobs if asked for."""
    if not isfinite(raw.peak):
        return EngineFailed(_NOT_FINITE.format("sequence"))
    chosen = _choose(raw, state, mask, scratch)
    if isinstance(chosen, EngineFailed):
        return chosen
    if state.sampling.logprobs is None:
        return Sampled(chosen)
    return Sampled(chosen, *raw_logprobs(raw.logits, raw.peak, chosen, state.sampling.logprobs, scratch))


def _choose(raw: _Raw, state: SamplerState, mask: Bitmask | None, scratch: Row) -> int | EngineFailed:
    """The token to take. Edits are made on a copy, since logprobs are of the raw row."""
    sampling = state.sampling
    row, best, peak = raw
    edits = state.edits_logits()
    if sampling.temperature == 0.0 and not edits and (mask is None or is_allowed(mask, best)):
        return best
    if edits or mask is not None:
        row = row.copy()
        state.edit(row)
        if mask is not None:
            forbid_unmasked(row, mask)
        best = int(row.argmax())
        peak = float(row[best])
        if not isfinite(peak):
            return EngineFailed("No token can follow: the output rule, penalties and bias leave none that is finite.")
    if sampling.temperature == 0.0:
        return best
    fill_weights(
        scratch,
        row,
        peak,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
    )
    return draw(scratch, state.generator)


def prompt_logprobs(logits: Logits, next_ids: Sequence[int], k: int) -> list[Sampled | EngineFailed]:
    """The logprob of each row's actual next token, and the `k` most likely ones: what `echo` shows of a prompt.

    Works row by row in one buffer, so it takes no memory beside the logits; give it a prompt in pieces.
    """
    scratch = scratch_for(logits.shape[1])
    peaks = logits.max(axis=1).tolist()
    found: list[Sampled | EngineFailed] = []
    with np.errstate(under="ignore"):
        for row, peak, token in zip(logits, peaks, next_ids, strict=True):
            if isfinite(peak):
                found.append(Sampled(token, *raw_logprobs(row, peak, token, k, scratch)))
            else:
                found.append(EngineFailed(_NOT_FINITE.format("prompt")))
    return found
