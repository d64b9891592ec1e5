"""What a provider says a request used, held to the contract of `Usage`; what it does not say is counted here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interlace.engines.types import Usage

_MOST = 1 << 53


def final_usage(reported: Mapping[str, Any] | None, prompt_tokens: int, completion_tokens: int) -> Usage:
    """The usage of a finished answer. `prompt_tokens` and `completion_tokens` are our own estimates, taken where the
    provider is silent, or says that an answer with text in it took nothing."""
    reported = reported or {}
    prompt = _number(reported, "prompt_tokens")
    completion = _number(reported, "completion_tokens")
    reasoning = _number(_details(reported, "completion_tokens_details"), "reasoning_tokens") or 0
    if completion == 0 < completion_tokens:
        completion = None
    if prompt == 0 < prompt_tokens:
        prompt = None
    estimated = prompt is None or completion is None
    prompt = prompt_tokens if prompt is None else prompt
    if completion is None:
        completion = max(completion_tokens, reasoning)
    elif reasoning and _number(reported, "total_tokens") == prompt + completion + reasoning:
        completion += reasoning  # some providers count reasoning beside the completion, not in it
    cached = min(_cached(reported), prompt)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=cached,
        cache_write_tokens=min(_cache_write(reported), prompt - cached),
        reasoning_tokens=min(reasoning, completion),
        estimated=estimated,
    )


def prompt_usage(reported: Mapping[str, Any] | None, prompt_tokens: int) -> tuple[int, bool]:
    """Prompt tokens of an embedding, and whether they are our estimate."""
    told = _number(reported or {}, "prompt_tokens")
    return (prompt_tokens, True) if not told else (told, False)


def _cached(reported: Mapping[str, Any]) -> int:
    details = _details(reported, "prompt_tokens_details")
    return _number(details, "cached_tokens") or _number(reported, "prompt_cache_hit_tokens") or 0


def _cache_write(reported: Mapping[str, Any]) -> int:
    details = _details(reported, "prompt_tokens_details")
    for name in ("cache_write_tokens", "cache_creation_tokens"):
        if found := _number(details, name):
            return found
    return _number(reported, "cache_creation_input_tokens") or 0


def _details(reported: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    details = reported.get(name)
    return details if isinstance(details, dict) else {}


def _number(values: Mapping[str, Any], name: str) -> int | None:
    value = values.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST else None
