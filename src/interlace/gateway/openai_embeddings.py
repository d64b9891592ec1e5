"""`/v1/embeddings`: what callers send, and the answer as floats or base64."""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from interlace.engines.types import Embeddings, EmbedRequest
from interlace.errors import InvalidRequest
from interlace.gateway.calls import Ask, Done, Happening
from interlace.gateway.openai_fields import TokenId
from interlace.gateway.wire import Body, decode, encode

MAX_INPUTS = 2048

Inputs = str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]


class EmbeddingBody(Body, frozen=True, kw_only=True):
    """The body of an embedding request."""

    model: str
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    user: str | None = None


class EmbeddingRow(msgspec.Struct, frozen=True):
    """One embedding: numbers, or their little-endian float32 bytes in base64."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(msgspec.Struct, frozen=True):
    """Tokens of the inputs."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, frozen=True):
    """The whole answer."""

    data: list[EmbeddingRow]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


_decoder = msgspec.json.Decoder(EmbeddingBody)


def parse_embedding(body: bytes, request_id: str, max_sequences: int) -> tuple[Ask, EmbeddingRendering]:  # noqa: ARG001 - a `Dialect`
    """Read an embedding's body. The number of inputs is bounded as OpenAI bounds it, not by `max_sequences`."""
    wanted = decode(body, _decoder)
    texts, ids = _inputs(wanted.input)
    if len(texts) + len(ids) > MAX_INPUTS:
        raise InvalidRequest(
            f"Invalid 'input': at most {MAX_INPUTS} inputs, got {len(texts) + len(ids)}.", param="input"
        )
    request = EmbedRequest(id=request_id, texts=texts, ids=ids)
    unused = ("user",) if wanted.user else ()
    ask = Ask(model=wanted.model, embed=request, dimensions=wanted.dimensions, input_param="input", unused=unused)
    return ask, EmbeddingRendering(wanted.model, as_base64=wanted.encoding_format == "base64")


def _inputs(given: Inputs) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Texts, or rows of token ids; never both, never an empty one."""
    items = [given] if isinstance(given, str) else given
    texts = tuple(item for item in items if isinstance(item, str))
    if len(texts) == len(items):
        rows: tuple[tuple[int, ...], ...] = ()
    elif all(isinstance(item, int) for item in items):
        rows = (tuple(item for item in items if isinstance(item, int)),)
    elif all(isinstance(item, list) for item in items):
        rows = tuple(tuple(item) for item in items if isinstance(item, list))
    else:
        raise InvalidRequest(
            "Invalid 'input': give text, a list of texts, token ids, or a list of lists of token ids.", param="input"
        )
    if any(not text for text in texts) or any(not row for row in rows):
        raise InvalidRequest("Invalid 'input': input cannot be an empty string or an empty list.", param="input")
    return texts, rows


class EmbeddingRendering:
    """One embedding request's answer. There is no streaming form."""

    stream = False

    def __init__(self, model: str, *, as_base64: bool) -> None:
        self._model = model
        self._base64 = as_base64
        self._rows: tuple[bytes, ...] = ()

    def take(self, batch: Sequence[Happening]) -> None:
        """Collect."""
        for happening in batch:
            if isinstance(happening, Embeddings):
                self._rows = happening.rows

    def whole(self, done: Done) -> bytes:
        """The list of embeddings."""
        rows = [EmbeddingRow(i, self._row(row)) for i, row in enumerate(self._rows)]
        usage = EmbeddingUsage(done.usage.prompt_tokens, done.usage.prompt_tokens)
        return encode(EmbeddingList(rows, self._model, usage))

    def chunks(self, batch: Sequence[Happening]) -> bytes:
        """Never asked for."""
        raise NotImplementedError

    def last_chunks(self, done: Done) -> bytes:
        """Never asked for."""
        raise NotImplementedError

    def _row(self, row: bytes) -> list[float] | str:
        if self._base64:
            return base64.b64encode(row).decode()
        return numbers_of(row)


def numbers_of(row: bytes) -> list[float]:
    """The numbers of a row of an `Embeddings`."""
    numbers = array("f", row)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
