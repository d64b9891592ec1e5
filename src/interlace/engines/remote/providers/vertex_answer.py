"""Gemini's answers, whole or chunk by chunk, as neutral events."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from interlace.engines.remote.counting import likely_chunk_tokens
from interlace.engines.remote.usage import Seen, checked_usage, number_in
from interlace.engines.remote.wire import ErrorInside
from interlace.engines.types import (
    Delta,
    Event,
    FinishReason,
    GenerateRequest,
    Started,
    Thought,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
)
from interlace.errors import EngineFailed

# --- the wire ----------------------------------------------------------------------------------------------------


class WireCall(msgspec.Struct, frozen=True):
    """A call, always whole."""

    name: str = ""
    id: str = ""
    args: msgspec.Raw = msgspec.Raw(b"")


class WirePart(msgspec.Struct, frozen=True, rename="camel"):
    """A piece of what was said. Other members (pictures, code that Google ran) have no neutral form."""

    text: str = ""
    thought: bool = False
    thought_signature: str = ""
    function_call: WireCall | None = None


class WireContent(msgspec.Struct, frozen=True):
    """What one candidate gained."""

    parts: list[WirePart] | None = None


class WireLogprob(msgspec.Struct, frozen=True, rename="camel"):
    """A token and how likely it was."""

    token: str = ""
    token_id: int = -1
    log_probability: float = 0.0


class WireTop(msgspec.Struct, frozen=True):
    """The most likely tokens at one place."""

    candidates: list[WireLogprob] | None = None


class WireLogprobs(msgspec.Struct, frozen=True, rename="camel"):
    """Chosen tokens, and at each place the most likely ones."""

    chosen_candidates: list[WireLogprob] | None = None
    top_candidates: list[WireTop] | None = None


class WireCandidate(msgspec.Struct, frozen=True, rename="camel"):
    """One choice, or what it gained."""

    index: int = 0
    content: WireContent | None = None
    finish_reason: str = ""
    logprobs_result: WireLogprobs | None = None


class WireFeedback(msgspec.Struct, frozen=True, rename="camel"):
    """Why the prompt was not answered."""

    block_reason: str = ""


class WireAnswer(msgspec.Struct, frozen=True, rename="camel"):
    """A chunk, or a whole answer."""

    candidates: list[WireCandidate] | None = None
    prompt_feedback: WireFeedback | None = None
    usage_metadata: Any = None
    error: Any = None


_decoder = msgspec.json.Decoder(WireAnswer)

_FINISH: dict[str, FinishReason] = {
    "MAX_TOKENS": "length",
    **dict.fromkeys(
        (
            "SAFETY",
            "RECITATION",
            "LANGUAGE",
            "BLOCKLIST",
            "PROHIBITED_CONTENT",
            "SPII",
            "IMAGE_SAFETY",
            "IMAGE_PROHIBITED_CONTENT",
            "IMAGE_RECITATION",
            "MODEL_ARMOR",
        ),
        "content_filter",
    ),
}
_BROKEN = {
    "MALFORMED_FUNCTION_CALL": "called a function in a way that cannot be read",
    "UNEXPECTED_TOOL_CALL": "called a function where none could be called",
    "TOO_MANY_TOOL_CALLS": "called functions without end",
    "MISSING_THOUGHT_SIGNATURE": "misses a signature in the conversation",
    "MALFORMED_RESPONSE": "wrote what is no answer",
}
_COUNTS = ("prompt", "toolUsePrompt", "candidates", "thoughts", "total")
_TIERS = {
    "ON_DEMAND": "default",
    "ON_DEMAND_PRIORITY": "priority",
    "ON_DEMAND_FLEX": "flex",
    "PROVISIONED_THROUGHPUT": "provisioned",
}

# --- reading -----------------------------------------------------------------------------------------------------


class GeminiAnswer:
    """Reads one answer; see `wire.Answer`."""

    def __init__(self, request: GenerateRequest, prompt_tokens: int) -> None:
        self.progress = 0
        self.done = False
        self._seen = Seen(request, prompt_tokens)
        self._logprobs = request.sampling.logprobs is not None
        self._finish: list[FinishReason | None] = [None] * request.n
        self._calls = [0] * request.n
        self._usage: Any = None
        self._started = False

    @property
    def complete(self) -> bool:
        """Whether every choice has its end."""
        return all(self._finish)

    def take(self, payload: bytes) -> list[Event]:
        """The events of one chunk, or of a whole answer."""
        payload = payload.strip()
        if not payload or self.done:
            return []
        try:
            chunk = _decoder.decode(payload)
        except (ValueError, RecursionError):
            raise EngineFailed("The server behind this model sent what is no answer. Try again.") from None
        if chunk.error:
            raise ErrorInside(payload)
        if isinstance(chunk.usage_metadata, dict):
            self._usage = chunk.usage_metadata
        events: list[Event] = []
        if chunk.candidates or chunk.prompt_feedback is not None:
            events += self._begun()
        for candidate in chunk.candidates or ():
            events += self._gained(candidate)
        if not chunk.candidates and chunk.prompt_feedback is not None and chunk.prompt_feedback.block_reason:
            # The prompt itself is refused: nothing was said, and what reading it took is billed all the same.
            self._finish = [finish or "content_filter" for finish in self._finish]
        return events

    def end(self, *, told: bool) -> list[Event]:
        """Why each choice ended, and what was used. Nothing in a stream says that it is the last chunk."""
        del told
        if self.done:
            return []
        if not self._started or not self.complete:
            raise EngineFailed("The server behind this model ended the answer before it was complete. Try again.")
        self.done = True
        finishes: list[Event] = [Delta(index, finish_reason=finish) for index, finish in enumerate(self._finish)]
        return [*finishes, self._used()]

    def _begun(self) -> list[Event]:
        if self._started:
            return []
        self._started = True
        return [Started(self._seen.prompt_tokens, estimated=True)]

    def _gained(self, candidate: WireCandidate) -> list[Event]:
        index = candidate.index
        if not 0 <= index < len(self._finish):
            raise EngineFailed("The server behind this model answered more often than asked. Try again.")
        events: list[Event] = []
        parts = (candidate.content.parts or ()) if candidate.content is not None else ()
        logprobs = _logprobs(candidate.logprobs_result) if self._logprobs else ()
        for part in parts:
            delta = self._delta(index, part, logprobs if not part.thought else ())
            if delta is None:
                continue
            if not part.thought:
                logprobs = ()
            self.progress += 1
            self._seen.add(delta)
            events.append(delta)
        if reason := candidate.finish_reason:
            if reason in _BROKEN:
                raise EngineFailed(f"The model {_BROKEN[reason]}. Try again.")
            self.progress += 1
            self._finish[index] = _FINISH.get(reason, "tool_calls" if self._calls[index] else "stop")
        return events

    def _delta(self, index: int, part: WirePart, logprobs: tuple[TokenLogprob, ...]) -> Delta | None:
        signature = part.thought_signature
        tokens = likely_chunk_tokens(part.text)
        if part.function_call is not None:
            return self._called(index, part.function_call, signature)
        if part.thought:
            thought = Thought(part.text, signature=signature)
            return Delta(index, tokens=tokens, thought=thought) if part.text or signature else None
        if not part.text and not signature:
            return None
        # A seal on a text is one of the thoughts before it, though it comes after.
        sealed = Thought(signature=signature) if signature else None
        return Delta(index, part.text, max(tokens, len(logprobs)), logprobs, thought=sealed)

    def _called(self, index: int, call: WireCall, signature: str) -> Delta:
        if not call.name:
            raise EngineFailed("The server behind this model called a tool without naming it. Try again.")
        arguments = bytes(call.args).decode() if call.args and bytes(call.args) != b"null" else "{}"
        id = call.id or f"call_{uuid.uuid4().hex[:24]}"
        delta = ToolCallDelta(self._calls[index], id, call.name, arguments, signature)
        self._calls[index] += 1
        return Delta(index, tokens=likely_chunk_tokens(call.name + arguments), tool_calls=(delta,))

    def _used(self) -> Usage:
        """Thoughts stand beside the candidates' tokens, and what tools brought into the prompt beside the prompt's; a
        count that is left out is zero where the total is told."""
        usage = self._usage if isinstance(self._usage, dict) else {}
        prompt, tools, said, thought, total = (number_in(usage, f"{name}TokenCount") for name in _COUNTS)
        if prompt is not None:
            prompt += tools or 0
        silent = said is None and thought is None and total is None
        completion = None if silent else (said or 0) + (thought or 0)
        tier = usage.get("trafficType")
        return checked_usage(
            self._seen,
            prompt=prompt,
            completion=completion,
            cached=number_in(usage, "cachedContentTokenCount") or 0,
            reasoning=thought or 0,
            disputed=total is not None and total != (prompt or 0) + (completion or 0),
            service_tier=_TIERS.get(tier, "") if isinstance(tier, str) else "",
        )


def _logprobs(result: WireLogprobs | None) -> tuple[TokenLogprob, ...]:
    if result is None:
        return ()
    chosen = result.chosen_candidates or []
    tops = [top.candidates or [] for top in result.top_candidates or ()]
    tops += [[]] * (len(chosen) - len(tops))
    return tuple(
        TokenLogprob(
            one.token_id,
            one.token.encode(),
            one.log_probability,
            tuple(TopLogprob(other.token_id, other.token.encode(), other.log_probability) for other in top),
        )
        for one, top in zip(chosen, tops, strict=False)
    )
