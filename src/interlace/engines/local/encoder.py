"""Texts to vectors or scores: an encoder of the BERT or RoBERTa family as a `Core`, batched across requests.

Order: whose turn it is by class and by organisation, counted in tokens, as in the decoder (`fairness`); of one
organisation round robin by request, one text a turn; at most `STEP_TOKENS` tokens a step. So a request of thousands of
texts takes its turn like any other, and one of a single text waits for one text of each request before it, not for
whole requests. What a step picked is sorted by length and padded per batch, within `PADDING` of waste.

A text longer than the model reads is refused with both numbers, since nothing of a caller's text is dropped in
silence; with `truncate` it is cut as sentence-transformers cuts it. Token ids are embedded as given: nothing is added.
Texts to be scored are read without control tokens, so that no document can end itself and go on as another query.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("OPENVINO_TELEMETRY_OPT_OUT", "1")
import openvino as ov

from interlace.engines.local.crowd import Group, crowded_out
from interlace.engines.local.encoder_graph import build_encoder
from interlace.engines.local.fairness import Queues
from interlace.engines.local.sequences import Sequence as Queued
from interlace.engines.local.tokenizer import Tokenizer, load_tokenizer
from interlace.engines.types import Capabilities, Embeddings, EmbedRequest, GenerateRequest, Health, Outcome
from interlace.errors import CheckpointError, ContextLengthExceeded, EngineFailed, InvalidRequest, Overloaded
from interlace.models import EncoderArchitecture, open_weights, read_architecture

STEP_TOKENS = 2048  # tokens of one step: what bounds its memory, and how soon a cancelled or new request is seen
PADDING = 0.25  # of a batch's longest text: how much shorter the others may be
QUEUE_TOKENS = 1 << 20  # tokens waiting in all; beyond, an organisation is sent away that has its part of them waiting
INPUTS_MAX = 2048  # texts of one request, as OpenAI's API has it
_RETRY_AFTER_SECONDS = 5.0

_PROPERTIES = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "NUM_STREAMS": 1,
    "ENABLE_CPU_PINNING": False,
}


@dataclass(frozen=True, slots=True)
class PreparedEmbedding:
    """An accepted request: the token ids of each of its texts, and where in them the second text of a pair begins."""

    request: EmbedRequest
    texts: tuple[tuple[int, ...], ...]
    seconds: tuple[int, ...] = ()  # of a request for scores, one for each text

    @property
    def group(self) -> Group:
        """Whose it is; no adapter has a part in it."""
        return self.request.tenant, ""

    @property
    def tokens(self) -> int:
        """Of all texts, special tokens included."""
        return sum(map(len, self.texts))


@dataclass(slots=True)
class _Job:
    """A request under way: the next text to compute, and the rows that are there."""

    prepared: PreparedEmbedding
    place: Queued  # in the queue
    next: int = 0
    rows: dict[int, bytes] = field(default_factory=dict)
    failed: bool = False


@dataclass(frozen=True, slots=True)
class _Pick:
    """Text number `index` of a job, to be computed in this step."""

    job: _Job
    index: int

    @property
    def ids(self) -> tuple[int, ...]:
        return self.job.prepared.texts[self.index]

    @property
    def second(self) -> int:
        seconds = self.job.prepared.seconds
        return seconds[self.index] if seconds else len(self.ids)


class Encoder:
    """An encoder that embeds texts or scores them; the `Core` protocol tells which calls may meet."""

    def __init__(
        self, architecture: EncoderArchitecture, tokenizer: Tokenizer, compiled: ov.CompiledModel, *, truncate: bool
    ) -> None:
        self._arch = architecture
        self._tokenizer = tokenizer
        self._compiled = compiled  # an infer request does not keep its model alive
        self._request = compiled.create_infer_request()
        self._truncate = truncate
        self._jobs: dict[str, _Job] = {}
        self._queues = Queues()  # jobs with texts still to compute
        self._waiting: Counter[Group] = Counter()  # their tokens, by organisation

    def prepare(self, request: GenerateRequest | EmbedRequest) -> PreparedEmbedding:
        """Tokenise the texts; raises `InvalidRequest`."""
        if isinstance(request, GenerateRequest) or (request.purpose == "score") != bool(self._arch.labels):
            kind = "scores texts: use /v1/classify or /v1/rerank" if self._arch.labels else "embeds: use /v1/embeddings"
            raise InvalidRequest(f"This model {kind}.", param="model")
        word = "input" if request.query is None else "documents"
        number = len(request.ids or request.texts)
        if number == 0:
            raise InvalidRequest(f"{word} must not be empty: send a text, or token ids.", param=word)
        if number > INPUTS_MAX:
            raise InvalidRequest(f"{word} has {number} texts; a request may have {INPUTS_MAX}.", param=word)
        if request.ids:
            ids = tuple(self._checked(f"{word}[{i}]", ids) for i, ids in enumerate(request.ids))
            return PreparedEmbedding(request, ids, tuple(map(len, ids)) if self._arch.labels else ())
        if self._arch.labels:
            return self._scored(request, word)
        return PreparedEmbedding(request, tuple(self._encoded(i, text) for i, text in enumerate(request.texts)))

    def _scored(self, request: EmbedRequest, word: str) -> PreparedEmbedding:
        if request.query is not None and len(self._arch.labels) != 1:
            raise InvalidRequest("This model gives a text several scores: use /v1/classify.", param="model")
        named = {"query": request.query} | {f"{word}[{i}]": text for i, text in enumerate(request.texts)}
        empty = next((name for name, text in named.items() if text == ""), None)
        if empty is not None:
            raise InvalidRequest(f"{empty} is an empty string; there is nothing to score.", param=_param(empty))
        pairs = self._tokenizer.encode_pairs(request.query, request.texts)
        texts = tuple(self._checked(f"{word}[{i}]", tuple(ids)) for i, (ids, _) in enumerate(pairs))
        return PreparedEmbedding(request, texts, tuple(second for _, second in pairs))

    def count(self, request: GenerateRequest | EmbedRequest) -> int:
        """Tokens of all texts together."""
        return self.prepare(request).tokens

    def _encoded(self, index: int, text: str) -> tuple[int, ...]:
        if not text:
            raise InvalidRequest(f"input[{index}] is an empty string; there is nothing to read.", param="input")
        ids = tuple(self._tokenizer.encode(text, special=True, framed=True))
        if self._truncate and len(ids) > self._arch.max_tokens:
            ids = ids[: self._arch.max_tokens - 1] + ids[-1:]  # the last one is [SEP]
        return self._checked(f"input[{index}]", ids)

    def _checked(self, name: str, ids: tuple[int, ...]) -> tuple[int, ...]:
        """`ids` themselves, if the model can read them; `name` is the wire's word for the text."""
        param = _param(name)
        if not ids:
            raise InvalidRequest(f"{name} has no tokens; there is nothing to read.", param=param)
        if len(ids) > self._arch.max_tokens:
            pair = " together with the query" if param == "documents" else ""
            raise ContextLengthExceeded(
                f"This model reads at most {self._arch.max_tokens} tokens, but {name} has {len(ids)}{pair}. "
                f"Send a shorter text, or split it. ({ContextLengthExceeded.default_code})",
                param=param,
            )
        if min(ids) < 0 or max(ids) >= self._arch.vocabulary:
            raise InvalidRequest(
                f"{name} has a token id outside this model's 0 to {self._arch.vocabulary - 1}.", param=param
            )
        return ids

    def add(self, prepared: PreparedEmbedding) -> None:
        """Queue a request; raises `Overloaded` when too much waits, and its organisation's part of that already."""
        waiting = self._waiting.total()
        if waiting and waiting + prepared.tokens > QUEUE_TOKENS and self._is_crowded_out(prepared):
            raise Overloaded(
                f"{waiting} tokens wait to be embedded already; try again later.",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        request = prepared.request
        job = _Job(prepared, Queued([], tenant=request.tenant, priority=request.priority))
        job.place.owner = job
        self._jobs[request.id] = job
        self._queues.join(job.place)
        self._waiting[prepared.group] += prepared.tokens

    def _is_crowded_out(self, prepared: PreparedEmbedding) -> bool:
        return crowded_out(self._waiting, prepared.group, prepared.tokens, QUEUE_TOKENS)

    def cancel(self, request_id: str) -> None:
        """Forget a request at once; unknown ids are ignored."""
        job = self._jobs.pop(request_id, None)
        if job is not None and job.place.group is not None:
            self._queues.leave(job.place)
            self._waiting[job.prepared.group] -= sum(map(len, job.prepared.texts[job.next :]))
            self._forget_the_idle(job)

    def has_work(self) -> bool:
        """Whether any text waits."""
        return bool(self._queues.groups)

    def step(self) -> list[tuple[str, Outcome]]:
        """Compute the next texts, at most `STEP_TOKENS` of them; return the requests that are done."""
        picks = self._pick()
        for batch in _batches(picks):
            rows = self._infer([pick.ids for pick in batch], [pick.second for pick in batch])
            for pick, row in zip(batch, rows, strict=True):
                pick.job.failed |= not np.isfinite(row).all()
                pick.job.rows[pick.index] = row.astype("<f4", copy=False).tobytes()
        return [self._finish(job) for job in {id(pick.job): pick.job for pick in picks}.values() if _is_done(job)]

    def _pick(self) -> list[_Pick]:
        """The texts of one step, each of whoever's turn it is, until the tokens are spent (at least one text)."""
        picks: list[_Pick] = []
        tokens = 0
        while behind := self._queues.behind():
            group = self._queues.first(behind)
            job = group.waiting[0].owner
            pick = _Pick(job, job.next)
            tokens += len(pick.ids)
            if picks and tokens > STEP_TOKENS:
                break
            picks.append(pick)
            job.next += 1
            group.charge(len(pick.ids))
            self._queues.turn_taken()
            self._waiting[job.prepared.group] -= len(pick.ids)
            group.waiting.rotate(-1)
            if job.next == len(job.prepared.texts):
                self._queues.leave(job.place)
                self._forget_the_idle(job)
        return picks

    def _forget_the_idle(self, job: _Job) -> None:
        if not self._waiting[job.prepared.group]:
            del self._waiting[job.prepared.group]

    def _infer(self, texts: Sequence[tuple[int, ...]], seconds: Sequence[int]) -> NDArray[np.float32]:
        """One row a text, [len(texts), hidden or labels]; `seconds`: where in each the second of a pair begins."""
        lengths = np.array([len(ids) for ids in texts])
        mask = np.arange(lengths.max()) < lengths[:, None]
        padded = np.zeros(mask.shape, dtype=np.int64)
        padded[mask] = np.concatenate([np.array(ids, dtype=np.int64) for ids in texts])
        inputs = [padded, mask.astype(np.float32)]
        if self._arch.labels:
            inputs.append((np.arange(lengths.max()) >= np.array(seconds)[:, None]).astype(np.int64))
        self._request.infer(inputs)
        return np.array(self._request.get_output_tensor(0).data)  # a copy: the runtime reuses its tensor

    def _finish(self, job: _Job) -> tuple[str, Outcome]:
        """The answer to a request whose rows are all there."""
        prepared = job.prepared
        name = prepared.request.id
        del self._jobs[name]
        if job.failed:
            return name, EngineFailed("The model computed numbers that are not finite for this input.")
        rows = tuple(job.rows[index] for index in range(len(prepared.texts)))
        labels = self._arch.labels
        return name, Embeddings(rows, len(labels) or self._arch.hidden, prepared.tokens, labels=labels)

    def capabilities(self) -> Capabilities:
        """What it can do."""
        return Capabilities(
            embed=not self._arch.labels,
            labels=self._arch.labels,
            context_length=self._arch.max_tokens,
            vocabulary=self._arch.vocabulary,
            dimensions=0 if self._arch.labels else self._arch.hidden,
            precision="f32",
        )

    def health(self) -> Health:
        """Counters now: requests under way, and of them those that nothing was computed for yet."""
        jobs = list(self._jobs.values())
        waiting = sum(job.next == 0 for job in jobs)
        return Health("ready", running=len(jobs) - waiting, waiting=waiting)


def _param(name: str) -> str:
    """The field that a text like `input[3]` stands in."""
    return name.partition("[")[0]


def _is_done(job: _Job) -> bool:
    return len(job.rows) == len(job.prepared.texts)


def _batches(picks: Sequence[_Pick]) -> list[list[_Pick]]:
    """Picks of about equal length together, longest first, so that little is computed for padding."""
    batches: list[list[_Pick]] = []
    for pick in sorted(picks, key=lambda pick: -len(pick.ids)):
        if batches and len(pick.ids) >= (1 - PADDING) * len(batches[-1][0].ids):
            batches[-1].append(pick)
        else:
            batches.append([pick])
    return batches


def load_encoder(path: Path, *, threads: int, progress: Callable[[str], None], truncate: bool = False) -> Encoder:
    """Read and compile the encoder in the folder `path`; raises `CheckpointError`.

    `threads`: 0 leaves the number to the runtime. `progress` is told what is under way. `truncate`: cut a long text
    to what the model reads, rather than refuse it.
    """
    architecture = read_architecture(path)
    if not isinstance(architecture, EncoderArchitecture):
        raise CheckpointError(f"{path.name} is of the {architecture.family} family, which is no encoder.")
    progress("reading the tokenizer")
    tokenizer = load_tokenizer(path)
    progress("building the encoder")
    with open_weights(path) as weights:
        model = build_encoder(architecture, weights)
    progress("compiling the encoder")
    compiled = ov.Core().compile_model(model, "CPU", _PROPERTIES | {"INFERENCE_NUM_THREADS": threads})
    return Encoder(architecture, tokenizer, compiled, truncate=truncate)
