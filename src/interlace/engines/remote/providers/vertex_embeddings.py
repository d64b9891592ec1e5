"""Embeddings by Google: three methods, of which each model knows one."""

from __future__ import annotations

import math
from array import array
from typing import Any

import msgspec

from interlace.config import ModelSettings
from interlace.engines.remote.usage import number_in
from interlace.engines.types import Embeddings, EmbedRequest
from interlace.errors import EngineFailed, InvalidRequest

Json = dict[str, Any]


class WireVector(msgspec.Struct, frozen=True):
    """One embedding; `statistics` come from `predict` only."""

    values: list[float]
    statistics: Any = None


class WirePrediction(msgspec.Struct, frozen=True):
    """One embedding, as `predict` wraps it."""

    embeddings: WireVector


class WireEmbeddings(msgspec.Struct, frozen=True, rename="camel"):
    """An answer of any of the three methods."""

    embeddings: list[WireVector] | None = None
    embedding: WireVector | None = None
    predictions: list[WirePrediction] | None = None
    usage_metadata: Any = None


_decoder = msgspec.json.Decoder(WireEmbeddings)


def embed_method(request: EmbedRequest, settings: ModelSettings) -> str:
    """The Gemini API embeds in batches; on Vertex AI Gemini's models embed one content or a batch, others predict."""
    if not settings.project:
        return "batchEmbedContents"
    if "gemini" not in settings.model.rpartition("/")[2]:
        return "predict"
    return "embedContent" if len(request.texts) == 1 else "batchEmbedContents"


def embed_body(request: EmbedRequest, settings: ModelSettings) -> Json:
    """The JSON body of an embedding request. Texts that are too long are refused by Google, not cut short."""
    if request.ids:
        raise InvalidRequest("Gemini embeds texts, not token ids.", param="input", code="unsupported_parameter")
    size: Json = {"outputDimensionality": settings.dimensions} if settings.dimensions else {}
    if not settings.project:
        model = settings.model if "/" in settings.model else f"models/{settings.model}"
        return {"requests": [{"model": model, "content": _content(text), **size} for text in request.texts]}
    config = {"autoTruncate": False, **size}
    match embed_method(request, settings):
        case "predict":
            return {"instances": [{"content": text} for text in request.texts], "parameters": config}
        case "embedContent":
            return {"content": _content(request.texts[0]), "embedContentConfig": config}
    return {"requests": [{"content": _content(text), "embedContentConfig": config} for text in request.texts]}


def read_embeddings(body: bytes, inputs: int, dimensions: int, prompt_tokens: int) -> Embeddings:
    """The rows of `inputs` texts, all of one length, `dimensions` where that is not 0. `prompt_tokens` is our estimate,
    for an answer that counts nothing. Raises `EngineFailed` for anything else."""
    try:
        answer = _decoder.decode(body)
        vectors = _vectors(answer)
        rows = [_row(vector.values) for vector in vectors]
    except (ValueError, RecursionError, OverflowError):
        raise EngineFailed("The server behind this model sent what are no embeddings. Try again.") from None
    if len(rows) != inputs:
        raise EngineFailed(f"The server behind this model sent {len(rows)} embeddings for {inputs} inputs.")
    sizes = {len(row) // 4 for row in rows}
    if len(sizes) != 1 or 0 in sizes or (dimensions and sizes != {dimensions}):
        raise EngineFailed("The server behind this model sent embeddings of another length than they must have.")
    told = _counted(answer, vectors)
    return Embeddings(tuple(rows), sizes.pop(), told or prompt_tokens, estimated=not told)


def _content(text: str) -> Json:
    return {"parts": [{"text": text}]}


def _vectors(answer: WireEmbeddings) -> list[WireVector]:
    if answer.predictions is not None:
        return [prediction.embeddings for prediction in answer.predictions]
    return answer.embeddings or ([] if answer.embedding is None else [answer.embedding])


def _counted(answer: WireEmbeddings, vectors: list[WireVector]) -> int:
    """Tokens of all texts; 0 where they are not told."""
    if isinstance(answer.usage_metadata, dict):
        return number_in(answer.usage_metadata, "promptTokenCount") or 0
    counts = [number_in(one.statistics, "token_count") for one in vectors if isinstance(one.statistics, dict)]
    told = [count for count in counts if count is not None]
    return sum(told) if len(told) == len(vectors) else 0


def _row(given: list[float]) -> bytes:
    """Little-endian float32, all of them finite; raises `ValueError`."""
    numbers = array("f", given)
    if not math.isfinite(sum(numbers)):
        raise ValueError
    return numbers.tobytes()
