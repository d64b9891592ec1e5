"""What a provider says a request used, held to the contract of `Usage`; what it does not say is counted here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from interlace.engines.remote.counting import most_prompt_tokens
from interlace.engines.types import Delta, GenerateRequest, Usage

_MOST = 1 << 53
_LONGEST_TOKEN = 64  # characters of a token, on average over an answer, that no tokenizer has


class Seen:
    """What passed by of one answer, to hold the provider's report against: our estimates, and what was sent."""

    __slots__ = ("_bytes", "_most", "_request", "completion_tokens", "prompt_tokens")

    def __init__(self, request: GenerateRequest, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens  # an estimate
        self.completion_tokens = 0  # an estimate
        self._bytes = 0  # of what was said, thought and called
        self._request = request
        most = request.sampling.max_tokens
        self._most = None if most is None else most * request.n

    def add(self, delta: Delta) -> None:
        """One delta of the answer."""
        self.completion_tokens += delta.tokens
        self._bytes += len(delta.text) + (len(delta.thought.text) if delta.thought else 0)
        for call in delta.tool_calls:
            self._bytes += len(call.arguments)

    def contradicted_by(self, prompt: int, completion: int) -> bool:
        """Whether so many tokens cannot be: nothing for something, fewer than the text can have, more than the bound
        that was sent, or a longer prompt than the texts can make."""
        if (completion == 0 < self.completion_tokens) or completion * _LONGEST_TOKEN < self._bytes:
            return True
        if self._most is not None and completion > self._most:
            return True
        if prompt == 0 < self.prompt_tokens:
            return True
        return prompt > most_prompt_tokens(self._request)


def final_usage(reported: Mapping[str, Any] | None, seen: Seen, service_tier: str = "") -> Usage:
    """The usage of a finished answer: the provider's where it says it, marked where it contradicts what was seen; else
    our estimate. A provider that says zero of everything counts nothing."""
    reported = reported or {}
    prompt = number_in(reported, "prompt_tokens")
    completion = number_in(reported, "completion_tokens")
    reasoning = number_in(_details(reported, "completion_tokens_details"), "reasoning_tokens") or 0
    read = _details(reported, "prompt_tokens_details")
    if prompt == 0 == completion and seen.completion_tokens:
        prompt = completion = None
    total = number_in(reported, "total_tokens")
    if reasoning and completion is not None and total == (prompt or 0) + completion + reasoning:
        completion += reasoning  # some providers count reasoning beside the completion, not in it
    adds_up = not total or prompt is None or completion is None or total == prompt + completion
    return checked_usage(
        seen,
        prompt=prompt,
        completion=completion,
        cached=_first_of(read, ("cached_tokens",)) or _first_of(reported, ("prompt_cache_hit_tokens",)),
        cache_write=_first_of(read, ("cache_write_tokens", "cache_creation_tokens"))
        or _first_of(reported, ("cache_creation_input_tokens",)),
        reasoning=reasoning,
        disputed=not adds_up,
        service_tier=service_tier,
    )


def checked_usage(
    seen: Seen,
    *,
    prompt: int | None,
    completion: int | None,
    cached: int = 0,
    cache_write: int = 0,
    cache_write_1h: int = 0,
    reasoning: int = 0,
    disputed: bool = False,
    service_tier: str = "",
) -> Usage:
    """The usage that a provider reports: `prompt` and `completion` are whole (what is cached or thought is in them),
    None where it is silent. What contradicts what was seen stands, and is marked."""
    estimated = prompt is None or completion is None
    if not estimated:
        disputed = disputed or seen.contradicted_by(prompt or 0, completion or 0)
    prompt = seen.prompt_tokens if prompt is None else prompt
    completion = max(seen.completion_tokens, reasoning) if completion is None else completion
    parts_fit = cached + cache_write <= prompt and cache_write_1h <= cache_write and reasoning <= completion
    disputed = disputed or (not estimated and not parts_fit)
    cached = min(cached, prompt)
    written = min(cache_write, prompt - cached)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=cached,
        cache_write_tokens=written,
        cache_write_1h_tokens=min(cache_write_1h, written),
        reasoning_tokens=min(reasoning, completion),
        estimated=estimated,
        disputed=disputed,
        service_tier=service_tier,
    )


def prompt_usage(reported: Mapping[str, Any] | None, prompt_tokens: int) -> tuple[int, bool]:
    """Prompt tokens of an embedding, and whether they are our estimate."""
    told = number_in(reported or {}, "prompt_tokens")
    return (prompt_tokens, True) if not told else (told, False)


def _first_of(values: Mapping[str, Any], names: Sequence[str]) -> int:
    """Of the counts by these names, the first that is there and not zero; 0 without any."""
    for name in names:
        if name in values and (found := number_in(values, name)):
            return found
    return 0


def _details(reported: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    details = reported.get(name)
    return details if isinstance(details, dict) else {}


def number_in(values: Mapping[str, Any], name: str) -> int | None:
    """A count of tokens; None where there is none that can be."""
    value = values.get(name)
    if type(value) is int and 0 <= value < _MOST:
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST else None
