"""The words engines and their callers share: a request, the events that answer it, and the `Engine` protocol.

Everything here is an immutable msgspec struct, because the same values cross the Unix socket to an engine host.
No wire dialect (OpenAI, Anthropic) is known here; `gateway/` translates.
"""

from __future__ import annotations

import builtins  # a field named `bytes` hides the type from whoever resolves annotations in its class
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Literal, Protocol

import msgspec

from interlace.errors import InterlaceError

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
Role = Literal["system", "developer", "user", "assistant", "tool"]


class Struct(msgspec.Struct, frozen=True, omit_defaults=True):
    """Base of all values that may cross a process border."""


# --- the request -----------------------------------------------------------------------------------------------


class ToolCall(Struct, frozen=True):
    """One call of a function, finished: `arguments` is JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


class Message(Struct, frozen=True):
    """One turn of a conversation, text only."""

    role: Role
    content: str = ""
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


class Tool(Struct, frozen=True):
    """A function the model may call; `parameters` is a JSON schema (an empty one takes an empty object)."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = msgspec.field(default_factory=dict)
    strict: bool = False


class OutputRule(Struct, frozen=True):
    """What shape the text must have. `kind` says how to read `rule`.

    `json_object`: any JSON object (`rule` unused); `json_schema`: `rule` is the schema as JSON text;
    `regex`: a regular expression the whole output matches; `grammar`: a Lark grammar as llguidance reads it.
    The rest is for providers that ask for it: what a schema is called, and whether it must hold (here it always does).
    """

    kind: Literal["json_object", "json_schema", "regex", "grammar"]
    rule: str = ""
    name: str = "answer"
    description: str = ""
    strict: bool = True


class Sampling(Struct, frozen=True):
    """How tokens are chosen. Defaults are OpenAI's; a value that changes nothing is the default."""

    max_tokens: int | None = None  # None: up to the context length
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and output, as in transformers
    presence_penalty: float = 0.0  # over output only, as OpenAI states it
    frequency_penalty: float = 0.0
    seed: int | None = None  # None: fresh randomness for each request
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] = msgspec.field(default_factory=dict)
    logprobs: int | None = None  # None: not wanted; k >= 0: the chosen token and the k most likely ones
    prompt_logprobs: bool = False  # with `logprobs`: also of every prompt token but the first


class GenerateRequest(Struct, frozen=True):
    """One prompt (or conversation) and how to continue it `n` times.

    Exactly one of `messages`, `prompt` and `prompt_ids` is given. `tenant` keeps cached prefixes apart.
    """

    id: str
    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    n: int = 1
    sampling: Sampling = Sampling()
    unset: tuple[str, ...] = ()  # fields of `sampling` the caller left open: the model's own defaults fill them
    output: OutputRule | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"  # "auto", "none", "required", or "function:NAME"
    parallel_tool_calls: bool = True
    tenant: str = ""


class EmbedRequest(Struct, frozen=True):
    """Texts (or token ids) to embed, answered together and in order."""

    id: str
    texts: tuple[str, ...] = ()
    ids: tuple[tuple[int, ...], ...] = ()  # used instead of `texts` when given


# --- the answer ------------------------------------------------------------------------------------------------


class TopLogprob(Struct, frozen=True):
    """A token that could have been chosen; `logprob` is natural-log, before any penalty, bias or temperature. `id` -1:
    a provider did not tell it."""

    id: int
    bytes: builtins.bytes
    logprob: float


class TokenLogprob(Struct, frozen=True):
    """The chosen token with its logprob and those of the most likely alternatives, best first."""

    id: int
    bytes: builtins.bytes
    logprob: float | None  # None only for the first prompt token
    top: tuple[TopLogprob, ...] = ()


class ToolCallDelta(Struct, frozen=True):
    """A piece of a tool call: `id` and `name` come with the first piece of call number `index`."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class Started(Struct, frozen=True, tag="started"):
    """The first event: the prompt is tokenised and accepted.

    `prompt_logprobs` is filled when asked for (then the event comes after prefill). `prompt_text` is the decoded
    prompt where it came as token ids, so that `echo` can show it.
    """

    prompt_tokens: int
    cached_tokens: int = 0
    prompt_text: str | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    estimated: bool = False


class Delta(Struct, frozen=True, tag="delta"):
    """What choice `index` gained: `tokens` generated tokens, which may show as less text than was generated so far
    (half characters and possible stop strings are held back). The last delta of a choice has `finish_reason`."""

    index: int = 0
    text: str = ""
    tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCallDelta, ...] = ()
    finish_reason: FinishReason | None = None
    stop: str | None = None  # the stop string that ended it


class Usage(Struct, frozen=True, tag="usage"):
    """The last event of a request, after every choice finished. `completion_tokens` counts all choices.

    `prompt_tokens` includes `cached_tokens` (read from a prefix cache) and `cache_write_tokens` (written to one);
    `completion_tokens` includes `reasoning_tokens`. `estimated`: a provider did not report it, so it was counted here.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False


Event = Started | Delta | Usage


class Embeddings(Struct, frozen=True, tag="embeddings"):
    """One row per input, little-endian float32 bytes, all of `dimensions` numbers. `estimated` as in `Usage`."""

    rows: tuple[bytes, ...]
    dimensions: int
    prompt_tokens: int
    estimated: bool = False


# --- the engine ------------------------------------------------------------------------------------------------


class Capabilities(Struct, frozen=True):
    """What a loaded engine can do. `context_length` counts prompt and output tokens together; 0: not known here.

    `stoppable`: closing its stream stops the work, so an answer can be ended when a budget is. One that is not takes
    its bound (`Sampling.max_tokens`) with the request.
    """

    generate: bool = False
    chat: bool = False  # has a chat template
    tools: bool = False  # its template shows tools to the model
    embed: bool = False
    context_length: int = 0
    vocabulary: int = 0
    dimensions: int = 0  # of an embedding
    precision: str = ""
    stoppable: bool = True


class Health(Struct, frozen=True):
    """How an engine is, with counters for `/metrics` (running and waiting sequences, KV blocks used and in all)."""

    state: Literal["loading", "ready", "restarting", "failed", "closed"]
    detail: str = ""
    running: int = 0
    waiting: int = 0
    blocks_used: int = 0
    blocks_total: int = 0
    restarts: int = 0


class Engine(Protocol):
    """Where tokens come from: a local engine behind its host, or a remote provider.

    Errors are `InterlaceError`s: `InvalidRequest` for the caller's fault, `Overloaded` when the queue is full,
    `EngineUnavailable` before it is ready, `EngineFailed` when it dies underneath. Any of them may come out of the
    first `anext()` or, for a death, of a later one.
    """

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Stream the events of one request; `aclose()` stops the work within one step."""
        ...

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Embed all texts of the request."""
        ...

    async def count(self, request: GenerateRequest | EmbedRequest) -> int:
        """The most prompt tokens the request can be billed for, before it runs: exact where the engine has the
        tokenizer, else an upper bound. Raises what `generate` or `embed` would for a prompt that cannot be."""
        ...

    def capabilities(self) -> Capabilities:
        """What it can do; raises `EngineUnavailable` before it is ready the first time."""
        ...

    def health(self) -> Health:
        """Its state now; never blocks."""
        ...

    async def close(self) -> None:
        """Stop all work and free everything; safe to call twice."""
        ...


# --- inside an engine host -------------------------------------------------------------------------------------

Outcome = Started | Delta | Usage | Embeddings | InterlaceError


class Core(Protocol):
    """A local engine as its host drives it: plain calls, no event loop.

    `prepare` and `count` may run on other threads while `step` runs; everything else is called from the stepping
    thread only.
    """

    def prepare(self, request: GenerateRequest | EmbedRequest) -> Any:
        """Tokenise, render and compile one request; raises `InvalidRequest` for the caller's fault."""
        ...

    def count(self, request: GenerateRequest | EmbedRequest) -> int:
        """Tokens of the request's prompt; raises `InvalidRequest` as `prepare` does for a prompt that cannot be."""
        ...

    def add(self, prepared: Any) -> None:
        """Queue what `prepare` returned; raises `Overloaded` when the queue is full."""
        ...

    def cancel(self, request_id: str) -> None:
        """Forget a request at once, freeing its blocks; unknown ids are ignored."""
        ...

    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        ...

    def step(self) -> list[tuple[str, Outcome]]:
        """Run one iteration (some prefill, one token for each running sequence) and return what came of it, by
        request id. A request ends with `Usage`, `Embeddings` or an `InterlaceError`."""
        ...

    def capabilities(self) -> Capabilities:
        """What it can do."""
        ...

    def health(self) -> Health:
        """Counters now; `state` is "ready"."""
        ...
