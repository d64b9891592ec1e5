"""The most a request may use, before it runs; and what it used, in the ledger's words."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from interlace.engines.types import BATCH_PRIORITY, EmbedRequest, Engine, GenerateRequest, Usage
from interlace.errors import InvalidRequest
from interlace.gateway.calls import Call
from interlace.ledger import Bound, Caller, Plan, Tokens

UNSTOPPABLE_TOKENS = 4096
"""The bound sent to an engine that cannot be stopped, where neither caller nor plan has one."""


def within_plan(work: GenerateRequest, plan: Plan, *, stoppable: bool) -> GenerateRequest:
    """The work with the plan's word on the length of answers; raises `InvalidRequest` for more than it allows."""
    wanted, largest = work.sampling.max_tokens, plan.largest_max_tokens
    if wanted is not None and largest is not None and wanted > largest:
        raise InvalidRequest(
            f"max_tokens is too large: {wanted}. The plan of this API key allows at most {largest}.",
            param="max_tokens",
            code="invalid_value",
        )
    if wanted is None:
        wanted = plan.default_max_tokens or largest
        if wanted is None and not stoppable:
            wanted = UNSTOPPABLE_TOKENS
        if wanted is not None:
            bounded = wanted if largest is None else min(wanted, largest)
            work = msgspec.structs.replace(work, sampling=msgspec.structs.replace(work.sampling, max_tokens=bounded))
    return work


def priority_of(call: Call, caller: Caller) -> int:
    """Whom an engine serves first: a batch can wait, others go by their plan."""
    return caller.plan.priority if call.batch is None else BATCH_PRIORITY


async def bound_of(
    engine: Engine, works: Sequence[GenerateRequest], embed: EmbedRequest | None, *, open_ended: bool, count: bool
) -> Bound:
    """The most the works, or the embedding, may use; with `count` the engine is asked how long the prompts are.

    An `open_ended` answer, where the caller gave no `max_tokens` and the engine can be stopped, is not bounded here.
    """
    asked = works if embed is None else (embed,)
    if not count:
        prompt = 0
    elif len(asked) == 1:
        prompt = await engine.count(asked[0])  # a task for each, as below, costs more than a count
    else:
        prompt = sum(await asyncio.gather(*(engine.count(work) for work in asked)))
    if embed is not None:
        return Bound(prompt, 0, embedding=True)
    can = engine.capabilities()
    if can.context_length:
        prompt = min(prompt, len(works) * can.context_length)
    if open_ended:
        return Bound(prompt, None)
    longest = [work.n * min(work.sampling.max_tokens or 0, can.context_length or 10**9) for work in works]
    return Bound(prompt, sum(longest))


def tokens_of(usage: Usage, *, embedding: bool) -> Tokens:
    """An engine's or provider's usage by kind. Parts are held to their whole, whatever a provider says."""
    if embedding:
        return Tokens(embedding=usage.prompt_tokens)
    cached = min(usage.cached_tokens, usage.prompt_tokens)
    written = min(usage.cache_write_tokens, usage.prompt_tokens - cached)
    return Tokens(
        prompt=usage.prompt_tokens,
        cached=cached,
        cache_write=written,
        cache_write_1h=min(usage.cache_write_1h_tokens, written),
        completion=usage.completion_tokens,
        reasoning=min(usage.reasoning_tokens, usage.completion_tokens),
    )


def goes_on_from(request: GenerateRequest) -> str:
    """The text that an answer goes on from: a prompt, or the assistant's own last words. "" where it begins anew."""
    if request.messages is None:
        return request.prompt or ""
    return request.messages[-1].text if request.prefill else ""
