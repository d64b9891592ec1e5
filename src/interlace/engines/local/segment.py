"""A part of a decoder on its own: tokens or hidden states in, hidden states or logits out, with a cache of its own.

Hidden states can be had and fed in front of every layer, and after the last one. Parts that meet at a boundary compute
together what the whole does.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from interlace.engines.local.blocks import blocks_for
from interlace.engines.local.compiled import Compiled, Run, places
from interlace.engines.local.constants import Array, ConstantMaker, Precision
from interlace.engines.local.graph import Span, build_decoder
from interlace.engines.local.runner import allocate_cache, properties_of
from interlace.errors import CheckpointError, ConfigError, ContextLengthExceeded, InvalidRequest, Overloaded
from interlace.models import DecoderArchitecture, open_weights, read_architecture


@dataclass(frozen=True, slots=True)
class Piece:
    """The next positions of one sequence: ids [t], or hidden states [t, hidden] float32, as the segment takes them."""

    sequence: str
    values: Rows[int] | Array


@dataclass(slots=True)
class _Sequence:
    length: int = 0
    blocks: list[int] = field(default_factory=list)


class Segment:
    """The layers from `span.begin` to `span.end`, compiled; only their weights are read. For one thread at a time."""

    def __init__(
        self,
        path: Path,
        architecture: DecoderArchitecture,
        span: Span,
        *,
        precision: Precision = "file",
        cache_bytes: int = 1 << 30,
        threads: int = 0,
    ) -> None:
        """ConfigError names a boundary that is none, or a cache too small for two blocks."""
        _check_span(span, architecture.layers)
        self.span = span
        self.architecture = architecture
        with open_weights(path) as weights:
            make = ConstantMaker(weights, precision)
            model = build_decoder(architecture, make, span=span)
        self._graph = Compiled(model, properties_of(precision, threads), make.buffers)
        self._names = self._graph.input_names
        self._sequences: dict[str, _Sequence] = {}
        ports = self._graph.cache_ports()
        self._cached = bool(ports)  # embeddings alone, or the head alone, keep nothing
        self._free: list[int] = []
        if ports:
            cache, _, blocks = allocate_cache(ports, cache_bytes)
            self._free = list(range(blocks - 1, -1, -1))
            for name, tensor in cache.items():
                self._graph.bind(name, tensor)

    def forward(self, pieces: Rows[Piece], *, every: bool = False) -> list[Array]:
        """Compute the pieces in one step, each behind what its sequence had before. For each: hidden states
        [t, hidden], or logits [1, vocabulary] of its last position (of `every` one: [t, vocabulary]), float32.

        InvalidRequest names what is wrong with a piece, and `Overloaded` says that the cache is full; then nothing is
        computed and no sequence has grown.
        """
        values = [self._checked(piece) for piece in pieces]
        if not pieces or len({piece.sequence for piece in pieces}) < len(pieces):
            raise InvalidRequest("A step takes at least one piece, and one of a sequence at most.", param="sequence")
        runs = self._placed(pieces, [len(each) for each in values])
        begins = np.cumsum([0, *map(len, values)])
        wanted = np.arange(begins[-1]) if every or self.span.end is not None else begins[1:] - 1
        inputs = places(runs) | {
            "input_ids" if self.span.begin is None else "hidden_in": np.concatenate(values),
            "logits_idx": wanted.astype(np.int32),
        }
        for name in self._names & inputs.keys():
            self._graph.set(name, inputs[name])
        output = self._graph.infer().copy()
        ends = begins[1:] if len(wanted) == begins[-1] else np.arange(1, len(pieces) + 1)
        return np.split(output, ends[:-1])

    def length(self, sequence: str) -> int:
        """How many positions of it were computed; 0 of one that is not known."""
        return self._sequences[sequence].length if sequence in self._sequences else 0

    def end(self, sequence: str) -> None:
        """Forget it, and free its blocks; one that is not known is ignored."""
        if (ended := self._sequences.pop(sequence, None)) is not None:
            self._free += reversed(ended.blocks)

    def _placed(self, pieces: Rows[Piece], lengths: Rows[int]) -> list[Run]:
        """Let the sequences grow by so many positions, or raise `Overloaded` and leave them as they are."""
        there = [self._sequences.get(piece.sequence) or _Sequence() for piece in pieces]
        more = [
            blocks_for(one.length + length) - len(one.blocks) if self._cached else 0
            for one, length in zip(there, lengths, strict=True)
        ]
        if sum(more) > len(self._free):
            raise Overloaded(
                f"The cache is full: {sum(more)} more blocks are needed, {len(self._free)} are free. "
                "End a sequence, or give more cache_bytes."
            )
        runs = []
        for piece, one, length, count in zip(pieces, there, lengths, more, strict=True):
            one.blocks += [self._free.pop() for _ in range(count)]
            self._sequences[piece.sequence] = one
            runs.append(Run(range(length), one.length, one.blocks))
            one.length += length
        return runs

    def _checked(self, piece: Piece) -> Array:
        """What the piece brings, as the graph takes it."""
        tokens = self.span.begin is None
        values = self._checked_ids(piece) if tokens else self._checked_states(piece)
        total = self.length(piece.sequence) + len(values)
        most = self.architecture.border or self.architecture.context_length  # beyond it all would have to be read anew
        if total > most:
            raise ContextLengthExceeded(
                f"Sequence {piece.sequence} would have {total} tokens; this model takes {most}.",
                param="tokens" if tokens else "hidden",
            )
        return values

    def _checked_ids(self, piece: Piece) -> Array:
        values, most = np.asarray(piece.values), self.architecture.vocabulary
        if values.ndim != 1 or not len(values) or not np.issubdtype(values.dtype, np.integer):
            raise InvalidRequest(
                f"Sequence {piece.sequence}: the first layers take token ids, one or more in a row, not "
                f"{values.dtype} {list(values.shape)}.",
                param="tokens",
            )
        if values.min() < 0 or values.max() >= most:
            wrong = values[(values < 0) | (values >= most)][0]
            raise InvalidRequest(
                f"Sequence {piece.sequence} has token {wrong}; this model's ids go from 0 to {most - 1}.",
                param="tokens",
            )
        return values.astype(np.int64)

    def _checked_states(self, piece: Piece) -> Array:
        values, width = np.asarray(piece.values), self.architecture.hidden
        if values.ndim != 2 or not len(values) or values.shape[1] != width or values.dtype != np.float32:
            raise InvalidRequest(
                f"Sequence {piece.sequence}: layer {self.span.begin} takes hidden states float32 [t, {width}] "
                f"with t of 1 or more, not {values.dtype} {list(values.shape)}.",
                param="hidden",
            )
        good = np.isfinite(values).all(axis=1)
        if not good.all():
            row = int(np.argmin(good))
            raise InvalidRequest(
                f"Sequence {piece.sequence}: row {row} of the hidden states is not finite (NaN or infinity).",
                param="hidden",
            )
        return np.ascontiguousarray(values)


def segment_of(path: Path, span: Span, *, precision: Precision, cache_bytes: int, threads: int) -> Segment:
    """See `interlace.engines.local.open_segment`."""
    architecture = read_architecture(path)
    if not isinstance(architecture, DecoderArchitecture):
        raise CheckpointError(f"{path} is a {architecture.family} model; only decoders can be split.")
    return Segment(path, architecture, span, precision=precision, cache_bytes=cache_bytes, threads=threads)


def _check_span(span: Span, layers: int) -> None:
    for name, boundary in (("begin", span.begin), ("end", span.end)):
        if boundary is not None and not 0 <= boundary <= layers:
            raise ConfigError(f"{name} is {boundary}, but this model has boundaries from 0 to {layers}.")
    if span.begin is not None and span.end is not None and span.begin >= span.end:
        raise ConfigError(f"begin is {span.begin} and end is {span.end}: there is no layer between them.")
