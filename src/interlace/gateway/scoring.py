"""`/v1/rerank`, as Jina's and Cohere's APIs have it, and `/v1/classify`, as vLLM's has it: bodies and answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from interlace.engines.types import Embeddings, EmbedRequest
from interlace.errors import InvalidRequest
from interlace.gateway.calls import Ask, Done, Happening
from interlace.gateway.openai_embeddings import MAX_INPUTS, EmbeddingUsage, numbers_of
from interlace.gateway.translation import Carried, Here, Ignored, Table
from interlace.gateway.wire import Body, decode, encode

# --- what callers send -------------------------------------------------------------------------------------------


class Document(Body, frozen=True):
    """A document as an object."""

    text: str


class RerankBody(Body, frozen=True, kw_only=True):
    """The body of a request to order documents by how well they answer a query."""

    model: str
    query: str
    documents: Annotated[list[str | Document], Meta(min_length=1)]
    top_n: Annotated[int, Meta(ge=1, le=MAX_INPUTS)] | None = None
    return_documents: bool | None = None
    user: str | None = None


class ClassifyBody(Body, frozen=True, kw_only=True):
    """The body of a request to classify texts."""

    model: str
    input: str | Annotated[list[str], Meta(min_length=1)]
    user: str | None = None


RERANK: Table = {
    "model": Here("chooses the model or route"),
    "query": Carried(),
    "documents[].text": Carried(),
    "top_n": Here("so many of the best are told; all are scored, and billed"),
    "return_documents": Here("the documents are told again beside their scores"),
    "user": Ignored("usage is recorded by API key"),
}
CLASSIFY: Table = {
    "model": Here("chooses the model or route"),
    "input": Carried(),
    "user": Ignored("usage is recorded by API key"),
}


# --- what they get -----------------------------------------------------------------------------------------------


class RankedDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """One document: its place among those that were sent, and a score from 0 to 1."""

    index: int
    relevance_score: float
    document: Document | None = None


class RerankList(msgspec.Struct, frozen=True):
    """The whole answer, best first."""

    id: str
    model: str
    results: list[RankedDocument]
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


class ClassifiedText(msgspec.Struct, frozen=True):
    """One text: its likeliest label, and the score of each label in the order of `labels`."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class ClassificationList(msgspec.Struct, frozen=True):
    """The whole answer, in the order of the texts."""

    id: str
    model: str
    labels: list[str]
    data: list[ClassifiedText]
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


_rerank_decoder = msgspec.json.Decoder(RerankBody)
_classify_decoder = msgspec.json.Decoder(ClassifyBody)


def parse_rerank(body: bytes, request_id: str, max_sequences: int) -> tuple[Ask, RerankRendering]:  # noqa: ARG001 - a `Dialect`
    """Read a rerank's body."""
    wanted = decode(body, _rerank_decoder)
    texts = tuple(one if isinstance(one, str) else one.text for one in wanted.documents)
    if not wanted.query:
        raise InvalidRequest("Invalid 'query': it cannot be empty.", param="query")
    _check(texts, "documents")
    request = EmbedRequest(id=request_id, texts=texts, purpose="score", query=wanted.query)
    ask = Ask(model=wanted.model, embed=request, input_param="documents", unused=("user",) if wanted.user else ())
    shown = texts if wanted.return_documents else ()
    return ask, RerankRendering(request_id, wanted.model, wanted.top_n, shown)


def parse_classify(body: bytes, request_id: str, max_sequences: int) -> tuple[Ask, ClassifyRendering]:  # noqa: ARG001 - a `Dialect`
    """Read a classification's body."""
    wanted = decode(body, _classify_decoder)
    texts = (wanted.input,) if isinstance(wanted.input, str) else tuple(wanted.input)
    _check(texts, "input")
    request = EmbedRequest(id=request_id, texts=texts, purpose="score")
    ask = Ask(model=wanted.model, embed=request, input_param="input", unused=("user",) if wanted.user else ())
    return ask, ClassifyRendering(request_id, wanted.model)


def _check(texts: tuple[str, ...], param: str) -> None:
    if len(texts) > MAX_INPUTS:
        raise InvalidRequest(f"Invalid '{param}': at most {MAX_INPUTS} texts, got {len(texts)}.", param=param)
    if not all(texts):
        raise InvalidRequest(f"Invalid '{param}': a text cannot be empty.", param=param)


class _Rendering:
    """The answer to one request for scores. There is no streaming form."""

    stream = False

    def __init__(self, id: str, model: str) -> None:
        self._id = id
        self._model = model
        self._scores: list[list[float]] = []
        self._labels: tuple[str, ...] = ()

    def take(self, batch: Sequence[Happening]) -> None:
        """Collect."""
        for happening in batch:
            if isinstance(happening, Embeddings):
                self._scores, self._labels = [numbers_of(row) for row in happening.rows], happening.labels

    def chunks(self, batch: Sequence[Happening]) -> bytes:
        """Never asked for."""
        raise NotImplementedError

    def last_chunks(self, done: Done) -> bytes:
        """Never asked for."""
        raise NotImplementedError


class RerankRendering(_Rendering):
    """Documents by score, best first, equal ones in the order they came."""

    def __init__(self, id: str, model: str, top: int | None, shown: tuple[str, ...]) -> None:
        super().__init__(id, model)
        self._top = top
        self._shown = shown

    def whole(self, done: Done) -> bytes:
        """The list of results."""
        order = sorted(range(len(self._scores)), key=lambda i: -self._scores[i][0])
        results = [
            RankedDocument(i, self._scores[i][0], Document(self._shown[i]) if self._shown else None)
            for i in order[: self._top]
        ]
        return encode(RerankList(self._id, self._model, results, _usage(done)))


class ClassifyRendering(_Rendering):
    """Labels and scores, text by text."""

    def whole(self, done: Done) -> bytes:
        """The list of texts."""
        data = [
            ClassifiedText(i, self._labels[max(range(len(row)), key=row.__getitem__)], row, len(row))
            for i, row in enumerate(self._scores)
        ]
        return encode(ClassificationList(self._id, self._model, list(self._labels), data, _usage(done)))


def _usage(done: Done) -> EmbeddingUsage:
    return EmbeddingUsage(done.usage.prompt_tokens, done.usage.prompt_tokens)
