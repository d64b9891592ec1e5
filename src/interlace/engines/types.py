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
    """One call of a function, finished: `arguments` is JSON text, as the model wrote it. `signature` is what its
    provider wants back with it, unread by anybody else. `followed_by` says how many parts of its turn's content come
    after it. `kind` is "" for a function; "custom" for a tool whose `arguments` are any text; else the type of a call
    that only one provider's models make, whose `arguments` are what it says beside its id, as JSON text."""

    id: str
    name: str
    arguments: str
    signature: str = ""
    cache: str = ""
    followed_by: int = 0
    kind: str = ""


# A `cache` mark says: a prompt cache may end here. It is "" for none, "default", or for how long: "5m", "1h", ...


class TextPart(Struct, frozen=True, tag="text"):
    """A piece of text."""

    text: str
    cache: str = ""


class RefusalPart(Struct, frozen=True, tag="refusal"):
    """What an assistant said when it refused."""

    text: str


class ThinkingPart(Struct, frozen=True, tag="thinking"):
    """What an assistant thought before it spoke: the text as far as it is shown, short versions of it, and the seal by
    which its provider knows its own work again. `redacted` is a thought that only its provider can read."""

    text: str = ""
    signature: str = ""
    redacted: str = ""
    summary: tuple[str, ...] = ()
    id: str = ""


class ImagePart(Struct, frozen=True, tag="image"):
    """A picture: `data` in base64 with its `media_type`, or the `url` of one that the provider fetches (we never do).
    `detail` is "", "low", "high", "auto", ...: how closely it is looked at. `uploaded`: the id of a file that takes its
    place before an engine sees it."""

    data: str = ""
    media_type: str = ""
    url: str = ""
    detail: str = ""
    cache: str = ""
    uploaded: str = ""


class FilePart(Struct, frozen=True, tag="file"):
    """A document: `data` in base64 (or, with `text`, plain text in it) with its `media_type`, or a `url`. `uploaded`:
    as of pictures."""

    data: str = ""
    media_type: str = ""
    url: str = ""
    text: str = ""
    name: str = ""
    cache: str = ""
    uploaded: str = ""


class AudioPart(Struct, frozen=True, tag="audio"):
    """Sound in base64; `format` as OpenAI says it: "wav" or "mp3"."""

    data: str
    format: str
    cache: str = ""


Part = TextPart | RefusalPart | ThinkingPart | ImagePart | FilePart | AudioPart


class Message(Struct, frozen=True):
    """One turn of a conversation. `content` is a text, or parts where it has more than one text in it.

    A turn of role "tool" holds the result of the call `tool_call_id`; `is_error`: the call failed. `name` and `cache`
    belong to the turn as a whole. `kind` is that of the call; a result that is more than text is JSON text.
    """

    role: Role
    content: str | tuple[Part, ...] = ""
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    is_error: bool = False
    cache: str = ""
    kind: str = ""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The content as parts; none for an empty text."""
        if isinstance(self.content, str):
            return (TextPart(self.content),) if self.content else ()
        return self.content

    @property
    def sequence(self) -> tuple[Part | ToolCall, ...]:
        """The parts and the calls, each in its place."""
        parts, made, taken = self.parts, list[Part | ToolCall](), 0
        for call in self.tool_calls:
            place = max(taken, len(parts) - call.followed_by)
            made += [*parts[taken:place], call]
            taken = place
        return (*made, *parts[taken:])

    @property
    def text(self) -> str:
        """What a model that only reads text reads of it: texts, refusals and text files, a line each, no thoughts."""
        if isinstance(self.content, str):
            return self.content
        read = (part for part in self.content if isinstance(part, TextPart | RefusalPart | FilePart) and part.text)
        return "\n".join(f"{part.name}:\n{part.text}" if isinstance(part, FilePart) else part.text for part in read)


class Tool(Struct, frozen=True):
    """A function the model may call; `parameters` is a JSON schema (an empty one takes an empty object). `native`:
    see `GenerateRequest`. `kind` is "" for a function; "custom" for a tool that takes any text, in the `format` in
    `native` where there is one, as the Responses API writes it; else the type of a tool that only one provider's
    models know, all of it in `native`."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = msgspec.field(default_factory=dict)
    strict: bool = False
    cache: str = ""
    native: Mapping[str, Any] = msgspec.field(default_factory=dict)
    kind: str = ""


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


class Reasoning(Struct, frozen=True):
    """How much a model thinks before it speaks. `effort` is "none", "minimal", "low", "medium", "high", "xhigh" or
    "max", "" where nothing was said; `budget_tokens` bounds the thoughts, 0 where nothing was said; `adaptive`: the
    model decides. `summary` says how thoughts are shown: "auto", "concise", "detailed", "summarized", "updates",
    "omitted"."""

    effort: str = ""
    budget_tokens: int = 0
    adaptive: bool = False
    summary: str = ""


class Options(Struct, frozen=True):
    """What a caller may say beside the question. None of it changes what is asked, so an engine that has no use for a
    field leaves it out, and the caller is told so."""

    verbosity: str = ""
    service_tier: str = ""
    user: str = ""
    safety_identifier: str = ""
    cache_key: str = ""
    cache_retention: str = ""
    metadata: Mapping[str, str] = msgspec.field(default_factory=dict)


BATCH_PRIORITY = -1_000_000
"""Below that of every plan: of what can wait for hours."""


class GenerateRequest(Struct, frozen=True, dict=True):
    """One prompt (or conversation) and how to continue it `n` times.

    Exactly one of `messages`, `prompt` and `prompt_ids` is given. `tenant` keeps cached prefixes apart. With `prefill`
    the last message is the assistant's, and the answer goes on where it ends. `native` holds fields of the dialect
    `dialect` that have no neutral form; only a provider that speaks that very dialect gets them. `asides` names those
    of them, and of the tools' own, that only say how it goes about its work: any other engine leaves them out.

    What is worked out of a request, which never changes, may be kept in its `__dict__`.
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
    prefill: bool = False
    reasoning: Reasoning | None = None
    options: Options = Options()
    dialect: str = ""
    native: Mapping[str, Any] = msgspec.field(default_factory=dict)
    asides: tuple[str, ...] = ()  # as the caller wrote them: "speed", "tools[].eager_input_streaming"
    adapter: str = ""  # of the model, by name; "": the base alone
    priority: int = 0  # whom an engine that queues serves first: the greater


class EmbedRequest(Struct, frozen=True):
    """Texts (or token ids) to turn into a row of numbers each, answered together and in order: vectors, or a score for
    each of the model's labels. With a `query`, each text is scored as the second of a pair with it."""

    id: str
    texts: tuple[str, ...] = ()
    ids: tuple[tuple[int, ...], ...] = ()  # used instead of `texts` when given
    purpose: Literal["embed", "score"] = "embed"
    query: str | None = None
    tenant: str = ""  # whose it is: an engine that queues gives each its share
    priority: int = 0  # whom an engine that queues serves first: the greater

    @property
    def read(self) -> tuple[str, ...]:
        """Every text that the model reads."""
        return self.texts if self.query is None else (self.query, *self.texts)


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
    """A piece of a tool call: `id` and `name` come with the first piece of call number `index`, `kind` (see
    `ToolCall`) with every one."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    signature: str = ""
    kind: str = ""


class Thought(Struct, frozen=True):
    """A piece of what the model thinks: `text`; `summary` where it is a short version of it. `signature` or `redacted`
    end a thought, as in `ThinkingPart`; `id` is the provider's name for it."""

    text: str = ""
    summary: bool = False
    signature: str = ""
    redacted: str = ""
    id: str = ""


class Started(Struct, frozen=True, tag="started"):
    """The first event: the prompt is tokenised and accepted, and its turn has come.

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
    (half characters and possible stop strings are held back). The last delta of a choice has `finish_reason`.

    What stands in one delta came in the order thought, text, tool calls. `refused`: the text says why the model will
    not answer.
    """

    index: int = 0
    text: str = ""
    tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCallDelta, ...] = ()
    finish_reason: FinishReason | None = None
    stop: str | None = None  # the stop string that ended it
    thought: Thought | None = None
    refused: bool = False


class Usage(Struct, frozen=True, tag="usage"):
    """The last event of a request, after every choice finished. `completion_tokens` counts all choices.

    `prompt_tokens` includes `cached_tokens` (read from a prefix cache) and `cache_write_tokens` (written to one,
    `cache_write_1h_tokens` of them for an hour); `completion_tokens` includes `reasoning_tokens`.
    `estimated`: a provider did not report it, so it was counted here.
    `disputed`: what a provider reports contradicts what was seen; it stands, and is marked for reconciliation.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False
    disputed: bool = False
    service_tier: str = ""  # the one that served, where a provider says so
    cache_write_1h_tokens: int = 0


Event = Started | Delta | Usage


class Embeddings(Struct, frozen=True, tag="embeddings"):
    """One row per input, little-endian float32 bytes, all of `dimensions` numbers: a vector, or a score for each label.
    `estimated` as in `Usage`."""

    rows: tuple[bytes, ...]
    dimensions: int
    prompt_tokens: int
    estimated: bool = False
    labels: tuple[str, ...] = ()  # of scores: what each number of a row is for


Outcome = Started | Delta | Usage | Embeddings | InterlaceError
"""What becomes of a request in an engine host."""


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
    labels: tuple[str, ...] = ()  # of a model that scores texts or pairs of them: what each score is for
    context_length: int = 0
    vocabulary: int = 0
    dimensions: int = 0  # of an embedding
    precision: str = ""
    stoppable: bool = True


class Health(Struct, frozen=True):
    """How an engine is, with counters for `/metrics`: running and waiting sequences, the latter by class too; KV blocks
    used, in all, and of those not used the ones that prompts may yet find; since it began, how often a sequence gave
    way, and how many prompt tokens were found in the cache."""

    state: Literal["loading", "ready", "restarting", "failed", "closed"]
    detail: str = ""
    running: int = 0
    waiting: int = 0
    blocks_used: int = 0
    blocks_total: int = 0
    restarts: int = 0
    blocks_cached: int = 0
    waiting_by_class: Mapping[str, int] = msgspec.field(default_factory=dict)
    preemptions: int = 0
    prefix_tokens: int = 0


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
        """Embed, or score, all texts of the request."""
        ...

    async def count(self, request: GenerateRequest | EmbedRequest) -> int:
        """The most prompt tokens the request can be billed for, before it runs: exact where the engine has the
        tokenizer, else an upper bound. Raises what `generate` or `embed` would for a prompt that cannot be."""
        ...

    async def tell_count(self, request: GenerateRequest) -> tuple[int, bool]:
        """The prompt's tokens for whoever asks how many there are, and whether they are an estimate. A provider's own
        counter is asked where there is one."""
        ...

    def capabilities(self) -> Capabilities:
        """What it can do; raises `EngineUnavailable` before it is ready the first time."""
        ...

    def fields(self) -> Mapping[str, Any]:
        """What becomes of each field of a request here: an `engines.fields.Fields`, the same for every request."""
        ...

    def health(self) -> Health:
        """Its state now; never blocks."""
        ...

    async def close(self) -> None:
        """Stop all work and free everything; safe to call twice."""
        ...
