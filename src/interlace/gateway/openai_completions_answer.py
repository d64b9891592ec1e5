"""`/v1/completions`: neutral events as OpenAI's text completion, whole or in chunks."""

from __future__ import annotations

import codecs
import time
from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from interlace.engines.types import Delta, FinishReason, GenerateRequest, TokenLogprob
from interlace.gateway.calls import Done, Happening, PartStarted
from interlace.gateway.openai_fields import UsageBody, finite, token_text, top_of, usage_body
from interlace.gateway.rendering import SSE_DONE, write_event
from interlace.gateway.wire import encode


class CompletionLogprobs(msgspec.Struct):
    """Logprobs in four columns, a row per token. `text_offset` counts characters from the start of the text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, frozen=True):
    """One choice, whole or a piece."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None


class Completion(msgspec.Struct, frozen=True):
    """The whole answer, or one server-sent event."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody | UnsetType | None = UNSET
    object: Literal["text_completion"] = "text_completion"


class _Offsets:
    """Where each token begins in the text of its choice, half characters considered."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at = 0

    def columns(self, tokens: Sequence[TokenLogprob]) -> CompletionLogprobs:
        columns = CompletionLogprobs([], [], [], [])
        for token in tokens:
            columns.tokens.append(token_text(token.bytes))
            columns.token_logprobs.append(None if token.logprob is None else finite(token.logprob))
            columns.top_logprobs.append(None if token.logprob is None else top_of(token))
            columns.text_offset.append(self._at)
            self._at += len(self._decoder.decode(token.bytes))
        return columns


class _Choice:
    """A choice as it grows, when it is answered whole."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish: FinishReason = "stop"


class CompletionRendering:
    """One completion, rendered."""

    def __init__(
        self,
        request_id: str,
        model: str,
        requests: Sequence[GenerateRequest],
        *,
        stream: bool,
        usage: bool,
        echo: bool,
    ) -> None:
        self.stream = stream
        self._id = f"cmpl-{request_id}"
        self._model = model
        self._created = int(time.time())
        self._n = requests[0].n
        self._logprobs = requests[0].sampling.logprobs is not None
        self._echo = echo
        self._usage = usage
        self._no_usage = None if usage else UNSET
        count = len(requests) * self._n
        self._choices = [_Choice() for _ in range(count)]
        self._offsets = [_Offsets() for _ in range(count)]

    def chunks(self, batch: Sequence[Happening]) -> bytes:
        """One event for each delta that shows something; with `echo` the prompt comes first."""
        out = bytearray()
        for happening in batch:
            if isinstance(happening, Delta):
                if happening.text or happening.logprobs or happening.finish_reason is not None:
                    logprobs = self._columns(happening.index, happening.logprobs) if happening.logprobs else None
                    self._write(
                        out, CompletionChoice(happening.index, happening.text, logprobs, happening.finish_reason)
                    )
            elif isinstance(happening, PartStarted) and self._echo:
                for index in self._indices(happening):
                    prompt_logprobs = happening.started.prompt_logprobs
                    logprobs = self._columns(index, prompt_logprobs) if prompt_logprobs else None
                    self._write(out, CompletionChoice(index, self._prompt(happening), logprobs))
        return bytes(out)

    def last_chunks(self, done: Done) -> bytes:
        """The usage where it was wanted, and the end."""
        out = bytearray()
        if self._usage:
            write_event(out, Completion(self._id, self._created, self._model, [], usage_body(done.usage)))
        return bytes(out + SSE_DONE)

    def take(self, batch: Sequence[Happening]) -> None:
        """Collect."""
        for happening in batch:
            if isinstance(happening, Delta):
                choice = self._choices[happening.index]
                choice.text.append(happening.text)
                choice.logprobs += happening.logprobs
                choice.finish = happening.finish_reason or choice.finish
            elif isinstance(happening, PartStarted) and self._echo:
                for index in self._indices(happening):
                    self._choices[index].text.append(self._prompt(happening))
                    self._choices[index].logprobs += happening.started.prompt_logprobs

    def whole(self, done: Done) -> bytes:
        """The completion."""
        choices = [
            CompletionChoice(i, "".join(choice.text), self._columns(i, choice.logprobs), choice.finish)
            for i, choice in enumerate(self._choices)
        ]
        return encode(Completion(self._id, self._created, self._model, choices, usage_body(done.usage)))

    def _columns(self, index: int, tokens: Sequence[TokenLogprob]) -> CompletionLogprobs | None:
        return self._offsets[index].columns(tokens) if self._logprobs else None

    def _indices(self, happening: PartStarted) -> range:
        return range(happening.part * self._n, (happening.part + 1) * self._n)

    def _prompt(self, happening: PartStarted) -> str:
        return happening.prompt if happening.prompt is not None else happening.started.prompt_text or ""

    def _write(self, out: bytearray, choice: CompletionChoice) -> None:
        write_event(out, Completion(self._id, self._created, self._model, [choice], self._no_usage))
