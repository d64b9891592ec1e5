"""What chat and completions have in common: the fields of sampling and output shape, and how they are read.

OpenAI's documented fields are all known. Those that change nothing here are accepted and ignored; those we cannot
honour are refused by name. `top_k`, `min_p`, `repetition_penalty`, `ignore_eos` and `structured_outputs` are vLLM's
extensions, under the same names.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from interlace.engines.types import OutputRule, Sampling, TokenLogprob, Usage
from interlace.errors import InvalidRequest
from interlace.gateway.wire import Body

MAX_CHOICES = 128
_LARGEST = (1 << 31) - 1

Count = Annotated[int, Meta(ge=1, le=_LARGEST)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
StopText = Annotated[str, Meta(min_length=1)]
TokenId = Annotated[int, Meta(ge=0, le=_LARGEST)]
Bias = Annotated[float, Meta(ge=-100, le=100)]


class StreamOptions(Body, frozen=True, kw_only=True):
    """`include_usage`: a last chunk tells the usage. `include_obfuscation` is accepted; nothing is padded."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class StructuredOutputs(Body, frozen=True, kw_only=True):
    """vLLM's way to name a shape: exactly one of a JSON schema, a regular expression and a Lark grammar."""

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    grammar: str | None = None


class SampledBody(Body, frozen=True, kw_only=True):
    """Fields of every endpoint that generates."""

    model: str
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=4)] | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Bias] | None = None
    max_tokens: Annotated[int, Meta(ge=0, le=_LARGEST)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    # extensions, as vLLM names them
    top_k: Annotated[int, Meta(ge=-1, le=_LARGEST)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    ignore_eos: bool | None = None
    structured_outputs: StructuredOutputs | None = None


def sampling_of(body: SampledBody, *, max_tokens: int | None, logprobs: int | None, prompt_logprobs: bool) -> Sampling:
    """How tokens are chosen, from the fields both endpoints have."""
    return Sampling(
        max_tokens=max_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else max(body.top_p, 1e-9),  # 0 means the single most likely token
        top_k=max(body.top_k or 0, 0),  # vLLM writes "off" as 0 or -1
        min_p=body.min_p or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        seed=body.seed,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        ignore_eos=bool(body.ignore_eos),
        logit_bias=_biases(body.logit_bias or {}),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


_LEFT_OPEN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def left_open(body: SampledBody) -> tuple[str, ...]:
    """What the caller left to the model's own defaults, as `GenerateRequest.unset` wants it."""
    given = (body.temperature, body.top_p, body.top_k, body.min_p, body.repetition_penalty)
    return tuple([name for name, value in zip(_LEFT_OPEN, given, strict=True) if value is None])


def check_stream_options(body: SampledBody) -> None:
    """`stream_options` says how to stream, so there must be a stream."""
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
        )


def wants_usage(body: SampledBody) -> bool:
    """Whether the stream ends with its usage."""
    return bool(body.stream_options and body.stream_options.include_usage)


def structured_rule(wanted: StructuredOutputs | None) -> OutputRule | None:
    """The shape that `structured_outputs` names."""
    if wanted is None:
        return None
    given = {name: value for name in wanted.__struct_fields__ if (value := getattr(wanted, name)) is not None}
    if len(given) != 1:
        raise InvalidRequest(
            "Give exactly one of json, regex and grammar in 'structured_outputs'.", param="structured_outputs"
        )
    ((name, value),) = given.items()
    if name == "json":
        return OutputRule("json_schema", value if isinstance(value, str) else msgspec.json.encode(value).decode())
    return OutputRule("regex" if name == "regex" else "grammar", value)


def _biases(given: dict[str, float]) -> dict[int, float]:
    biases: dict[int, float] = {}
    for key, bias in given.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= 10):
            raise InvalidRequest(
                f"Invalid key in 'logit_bias': {key[:40]!r}. Keys are token ids, written as whole numbers.",
                param="logit_bias",
            )
        biases[int(key)] = bias
    return biases


# --- answers -----------------------------------------------------------------------------------------------------


class PromptDetails(msgspec.Struct, frozen=True):
    """Of the prompt tokens, those that came from the cache, and those that a provider wrote to one."""

    cached_tokens: int = 0
    cache_write_tokens: int | UnsetType = UNSET


class CompletionDetails(msgspec.Struct, frozen=True):
    """Of the completion tokens, those that were thoughts."""

    reasoning_tokens: int


class UsageBody(msgspec.Struct, frozen=True):
    """OpenAI's usage object."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails | UnsetType = UNSET


def usage_body(usage: Usage) -> UsageBody:
    """The usage of a request in OpenAI's words."""
    return UsageBody(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptDetails(usage.cached_tokens, usage.cache_write_tokens or UNSET),
        completion_tokens_details=CompletionDetails(usage.reasoning_tokens) if usage.reasoning_tokens else UNSET,
    )


def token_text(token: bytes) -> str:
    """A token as text; one that is no UTF-8 by itself is written byte by byte, as OpenAI does."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def finite(logprob: float) -> float:
    """JSON knows no infinity; OpenAI writes an impossible token as -9999."""
    return logprob if math.isfinite(logprob) else -9999.0


def top_of(token: TokenLogprob) -> dict[str, float]:
    """The alternatives of one token by their text, the chosen one always among them."""
    top = {token_text(other.bytes): finite(other.logprob) for other in token.top}
    if token.logprob is not None:
        top.setdefault(token_text(token.bytes), finite(token.logprob))
    return top
