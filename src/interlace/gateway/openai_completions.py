"""`/v1/completions`: what callers send, and how it becomes a neutral ask. One prompt or many, as text or token ids."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from interlace.engines.types import GenerateRequest, Options
from interlace.errors import InvalidRequest
from interlace.gateway.calls import Ask
from interlace.gateway.openai_completions_answer import CompletionRendering
from interlace.gateway.openai_fields import (
    MAX_CHOICES,
    SampledBody,
    TokenId,
    check_stream_options,
    left_open,
    sampling_of,
    structured_rule,
    wants_usage,
)
from interlace.gateway.openai_tables import COMPLETIONS
from interlace.gateway.translation import Words, carriers_of
from interlace.gateway.wire import decode

DIALECT = "openai.completions"
CARRIERS = carriers_of(COMPLETIONS)
DEFAULT_MAX_TOKENS = 16  # OpenAI's, for this endpoint only

CONVERSATIONS_ONLY = ("metadata", "safety_identifier", "service_tier", "store")
"""Fields that some clients send with prompts as well; no completions endpoint has a use for them."""

Prompt = str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]


class CompletionBody(SampledBody, frozen=True, kw_only=True):
    """The body of a completion."""

    prompt: Prompt
    best_of: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    suffix: str | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None


_decoder = msgspec.json.Decoder(CompletionBody)


def parse_completion(body: bytes, request_id: str, max_sequences: int) -> tuple[Ask, CompletionRendering]:
    """Read a completion's body."""
    completion = decode(body, _decoder)
    check_stream_options(completion)
    prompts = _prompts(completion.prompt)
    n, echo = completion.n or 1, bool(completion.echo)
    _refuse_what_we_cannot(completion, len(prompts) * n, max_sequences)
    sampling = sampling_of(
        completion,
        max_tokens=DEFAULT_MAX_TOKENS if completion.max_tokens is None else completion.max_tokens,
        logprobs=completion.logprobs,
        prompt_logprobs=echo and completion.logprobs is not None,
    )
    rule = structured_rule(completion.structured_outputs)
    options = Options(user=completion.user or "")
    requests = tuple(
        GenerateRequest(
            id=request_id if len(prompts) == 1 else f"{request_id}-{i}",
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_ids=None if isinstance(prompt, str) else prompt,
            n=n,
            sampling=sampling,
            unset=left_open(completion),
            output=rule,
            options=options,
            dialect=DIALECT,
        )
        for i, prompt in enumerate(prompts)
    )
    rendering = CompletionRendering(
        request_id,
        completion.model,
        requests,
        stream=bool(completion.stream),
        usage=wants_usage(completion),
        echo=echo,
    )
    unused = tuple(name for name in CONVERSATIONS_ONLY if getattr(completion, name))
    return Ask(
        completion.model, requests, input_param="prompt", words=Words(CARRIERS, completion), unused=unused
    ), rendering


def _prompts(prompt: Prompt) -> list[str | tuple[int, ...]]:
    """One entry per prompt: a list of numbers is one prompt, a list of anything else is many."""
    if isinstance(prompt, str):
        return [prompt]
    if all(isinstance(item, int) for item in prompt):
        return [tuple(item for item in prompt if isinstance(item, int))]
    prompts: list[str | tuple[int, ...]] = []
    for i, item in enumerate(prompt):
        if isinstance(item, int):
            raise InvalidRequest(
                "Invalid 'prompt': give text, a list of texts, token ids, or a list of lists of token ids.",
                param="prompt",
            )
        if not isinstance(item, str) and not item:
            raise InvalidRequest(f"Invalid 'prompt[{i}]': a prompt of token ids cannot be empty.", param=f"prompt[{i}]")
        prompts.append(item if isinstance(item, str) else tuple(item))
    return prompts


def _refuse_what_we_cannot(completion: CompletionBody, sequences: int, max_sequences: int) -> None:
    if completion.suffix:
        raise InvalidRequest(
            "This model cannot insert before a 'suffix'.", param="suffix", code="unsupported_parameter"
        )
    if completion.best_of is not None and completion.best_of != (completion.n or 1):
        raise InvalidRequest("'best_of' is only supported when it equals 'n'.", param="best_of")
    if sequences > max_sequences:
        raise InvalidRequest(
            f"At most {max_sequences} answers to one request; prompts times 'n' are {sequences}.", param="n"
        )
    if completion.max_tokens == 0 and not completion.echo:
        raise InvalidRequest("'max_tokens' can only be 0 together with 'echo'.", param="max_tokens")
