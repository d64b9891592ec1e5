"""The policy `open_first`: whether a local model's answer will do, or the next model must be asked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec
import regex

from interlace.config import OpenFirstSettings
from interlace.engines.types import Delta, GenerateRequest, OutputRule
from interlace.gateway.routing.schema import fits

if TYPE_CHECKING:
    from interlace.gateway.calls import Happening, Work

LOOKED_AT = 300  # characters at the beginning of an answer in which a refusal is looked for
_SECONDS = 0.1  # the longest that one expression may take


def for_judging(settings: OpenFirstSettings, work: Work) -> Work:
    """The same work, its tokens' logprobs asked for where they are judged by."""
    if settings.least_mean_logprob is None:
        return work
    requests = tuple(
        request
        if request.sampling.logprobs is not None
        else msgspec.structs.replace(request, sampling=msgspec.structs.replace(request.sampling, logprobs=0))
        for request in work.requests
    )
    return msgspec.structs.replace(work, requests=requests)


def without_logprobs(work: Work, events: Sequence[Happening]) -> list[Happening]:
    """The events as the caller asked for them."""
    if any(request.sampling.logprobs is not None for request in work.ask.generate):
        return list(events)
    return [msgspec.structs.replace(one, logprobs=()) if isinstance(one, Delta) else one for one in events]


def judged(settings: OpenFirstSettings, work: Work, events: Sequence[Happening]) -> str:
    """What is wrong with an answer: "refusal", "low confidence" or "schema"; empty where it will do.

    `work` is as `for_judging` made it, `events` all that came. One choice that will not do is enough.
    """
    answers: dict[int, list[Delta]] = {}
    for event in events:
        if isinstance(event, Delta):
            answers.setdefault(event.index, []).append(event)
    choices = max((request.n for request in work.requests), default=1)
    for index, deltas in sorted(answers.items()):
        fault = _fault(settings, work.requests[min(index // choices, len(work.requests) - 1)], deltas)
        if fault:
            return fault
    return ""


def _fault(settings: OpenFirstSettings, request: GenerateRequest, deltas: Sequence[Delta]) -> str:
    text = "".join(delta.text for delta in deltas)
    finish = next((delta.finish_reason for delta in deltas if delta.finish_reason), None)
    calls: dict[int, str] = {}
    for delta in deltas:
        for piece in delta.tool_calls:
            calls[piece.index] = calls.get(piece.index, "") + (piece.arguments if piece.kind != "custom" else "")
    if not calls and (finish == "content_filter" or _refuses(settings.refusals, text)):
        return "refusal"
    if any(not _is_json(arguments) for arguments in calls.values()):
        return "schema"
    if request.output is not None and not calls and not keeps(request.output, text, finish):
        return "schema"
    least = settings.least_mean_logprob
    logprobs = [token.logprob for delta in deltas for token in delta.logprobs if token.logprob is not None]
    if least is not None and logprobs and sum(logprobs) / len(logprobs) < least:
        return "low confidence"
    return ""


def _refuses(patterns: Sequence[str], text: str) -> bool:
    beginning = text.strip()[:LOOKED_AT]
    try:
        return any(_compiled(pattern).match(beginning, timeout=_SECONDS) for pattern in patterns)
    except TimeoutError:
        return False


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> regex.Pattern[str]:
    return regex.compile(pattern)


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text.encode() or b"{}")
    except (ValueError, RecursionError):
        return False
    return True


def keeps(rule: OutputRule, text: str, finish: str | None) -> bool:
    """Whether a whole text keeps an output rule. Engines hold their tokens to patterns and grammars, so what can be
    wrong there is that the answer was cut off; JSON and its schema are looked at again, as a whole."""
    if rule.kind in {"regex", "grammar"}:
        return finish != "length"
    try:
        value = msgspec.json.decode(text.encode())
        schema = msgspec.json.decode(rule.rule.encode()) if rule.kind == "json_schema" else {"type": "object"}
    except (ValueError, RecursionError):
        return False
    return not isinstance(schema, dict) or fits(schema, value)
