# ruff: noqa: RUF009 (`setting` is a field specifier; ruff knows only `field` itself)
"""What can be set, with defaults, bounds and one line of documentation each: the reference page is made from this.

The dataclasses hold values only. Bounds and choices stand in each field's metadata and are checked by the reader, which
knows the line a value came from.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interlace.config.edge_settings import CorsSettings, ProxySettings, TlsSettings
from interlace.config.engines import EMBEDDING, ENGINES, LOCAL, OPENAI, REMOTE, VLLM
from interlace.config.route_settings import BreakerSettings, RouteSettings
from interlace.config.setting import setting
from interlace.money import Micros, Nanos

DEFAULT_MODEL = "smollm2-135m-instruct"
PRECISIONS = ("file", "f32", "bf16", "int8", "auto")


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """A LoRA adapter over a model's checkpoint, in PEFT's format."""

    name: str = setting("What it is called among the model's adapters; callers write MODEL:NAME.")
    folder: str = setting("The folder with adapter_config.json and adapter_model.safetensors.")
    owner: str = setting(
        "The organisation that it belongs to, by name or id: for others there is no such model. Left out: everybody's.",
        "",
    )


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """One served model. `cache_bytes` caps the KV cache; `threads` 0 means one per physical core.

    `api_key` is a reference such as `${OPENAI_API_KEY}`: the key itself stays in the environment and is read when the
    engine is made, so that settings can be shown, logged and sent to an engine host.
    """

    name: str = setting("The public name callers put into `model`.")
    checkpoint: str = setting(
        "A name in the store (`interlace checkpoints list`), or a path that starts with / ./ or ~.",
        "",
        only=(LOCAL,),
        required=(LOCAL,),
    )
    engine: str = setting(
        "What runs it: this machine (local), a server that speaks OpenAI's API (openai), or the provider of that name.",
        LOCAL,
        choices=ENGINES,
    )
    precision: str = setting(
        "Arithmetic and weights: as in the file, or converted. auto: the fastest on this machine of those that nearly "
        "always choose the same tokens as f32, which the first start measures.",
        "file",
        choices=PRECISIONS,
        only=(LOCAL,),
    )
    expected_streams: int = setting(
        "With `precision: auto`: for how many answers at once it should be fastest.",
        32,
        minimum=1,
        maximum=4096,
        only=(LOCAL,),
    )
    sampling: str = setting(
        "What fills temperature, top_p, ... that a caller leaves out: what the model's makers suggest, or OpenAI's "
        "defaults (temperature 1).",
        "model",
        choices=("model", "openai"),
        only=(LOCAL,),
    )
    cache_bytes: int = setting(
        "Cap of the KV cache; sizes such as 512MiB are understood.", 1 << 30, minimum=1 << 20, only=(LOCAL,)
    )
    context_length: int = setting(
        "Longest prompt plus answer in tokens; 0: what the checkpoint says, or not known.", 0, minimum=0
    )
    max_sequences: int = setting("Sequences that run at once.", 64, minimum=1, maximum=4096, only=(LOCAL,))
    max_waiting: int = setting(
        "Sequences queued in the engine before callers get 429; an organisation may always queue its equal part.",
        256,
        minimum=0,
        only=(LOCAL,),
    )
    step_tokens: int = setting(
        "Token budget of one step, prefill and decode together; four times as much while nobody is being answered.",
        256,
        minimum=1,
        only=(LOCAL,),
    )
    adapters: tuple[AdapterSettings, ...] = setting(
        "LoRA adapters over it, loaded when they are first asked for.", (), only=(LOCAL, VLLM)
    )
    adapter_bytes: int = setting(
        "Cap of the adapters in memory; without `interlace adapters compile`, those in the running batch take as much "
        "again. The one used longest ago makes room.",
        1 << 30,
        minimum=1 << 20,
        only=(LOCAL,),
    )
    threads: int = setting(
        "Threads of the engine; 0: one per physical core.", 0, minimum=0, maximum=1024, only=(LOCAL,)
    )
    base_url: str = setting(
        "Where the server's API begins, such as https://api.openai.com/v1; providers by name know their own.",
        "",
        only=REMOTE,
        required=("openai", "azure"),
    )
    model: str = setting(
        "What the server calls the model; with `executable`, the checkpoint it serves: a folder with safetensors, by "
        "its name in the store or a path that starts with / ./ or ~.",
        "",
        only=REMOTE,
        required=REMOTE,
    )
    executable: str = setting(
        "The `vllm` command of an environment that has it, such as /opt/vllm/bin/vllm: with it, `vllm serve` is "
        "started and watched here, on a port of this machine alone.",
        "",
        only=(VLLM,),
    )
    arguments: tuple[str, ...] = setting(
        "More options of `vllm serve`, each as --name or --name=value.", (), only=(VLLM,)
    )
    max_loras: int = setting(
        "Adapters that may be in one batch of a vLLM that is started here; 0: none, and nothing is ready for them.",
        0,
        minimum=0,
        maximum=4096,
        only=(VLLM,),
    )
    start_seconds: float = setting(
        "Longest time from the start of `vllm serve` until it is ready; then it is started again.",
        900.0,
        minimum=1,
        only=(VLLM,),
    )
    api_key: str = setting(
        "The environment variable that holds the server's key, written `${NAME}`; left out: the provider's usual one, "
        "and for openai, ollama and vllm none is sent.",
        "",
        only=REMOTE,
        secret=True,
    )
    api_version: str = setting(
        "A dated version of Azure's API, such as 2024-10-21, with which `model` names a deployment; left out: the API "
        "that has no versions (/openai/v1).",
        "",
        only=("azure",),
    )
    entra_tenant: str = setting("The tenant at Microsoft Entra that vouches for this gateway.", "", only=("azure",))
    entra_client: str = setting("What Entra calls this gateway: its client id.", "", only=("azure",))
    entra_secret: str = setting(
        "The environment variable that holds its client secret, written `${NAME}`.", "", only=("azure",), secret=True
    )
    entra_token: str = setting(
        "The environment variable that holds a token of Entra, which is used as it is, written `${NAME}`.",
        "",
        only=("azure",),
        secret=True,
    )
    token_url: str = setting(
        "Where tokens come from; left out: Microsoft's public cloud. Other clouds have others.", "", only=("azure",)
    )
    token_scope: str = setting("What a token is for.", "https://cognitiveservices.azure.com/.default", only=("azure",))
    region: str = setting(
        "The AWS region the model runs in, such as eu-central-1; left out: what AWS's variables and profile say.",
        "",
        only=("bedrock",),
    )
    project: str = setting(
        "The Google Cloud project; left out: the Gemini API with a key, not Vertex AI.", "", only=("vertex",)
    )
    location: str = setting("Where in Google Cloud the model runs, such as europe-west4.", "global", only=("vertex",))
    publisher: str = setting(
        "Whose model it is, where its name does not say so: anthropic or amazon (bedrock); else google (vertex).",
        "",
        only=("bedrock", "vertex"),
    )
    api: str = setting(
        "Which of OpenAI's APIs answers conversations; reasoning models think better across calls with responses.",
        "chat",
        choices=("chat", "responses"),
        only=OPENAI,
    )
    embeds: bool = setting("It makes embeddings, not text.", False, only=EMBEDDING)
    dimensions: int = setting(
        "How many numbers each of its embeddings has; 0: as many as come.", 0, minimum=0, only=EMBEDDING
    )
    stream: bool = setting(
        "Answers are streamed from the server, so that one can be stopped; false for a server that cannot.",
        True,
        only=REMOTE,
    )
    extensions: bool | None = setting(
        "The server knows vLLM's fields beyond OpenAI's: top_k, min_p, repetition_penalty, ignore_eos, "
        "structured_outputs, continue_final_message. Otherwise a request with one of them is refused. Left out: true "
        "for vllm.",
        None,
        only=OPENAI,
    )
    max_tokens_field: str | None = setting(
        "What the server calls the longest answer; newer models of OpenAI want max_completion_tokens. Left out: "
        "max_tokens, or what the provider by that name wants.",
        None,
        choices=("max_tokens", "max_completion_tokens"),
        only=OPENAI,
    )
    cache_marks: bool | None = setting(
        "The server knows prompt_cache_breakpoint. Left out: true where the server is OpenAI's own.", None, only=OPENAI
    )
    store: bool = setting(
        "Answers may be stored at the provider; without it, nothing is, and `metadata` of callers stays here.",
        False,
        only=OPENAI,
    )
    connections: int = setting(
        "Connections to the server at once; further requests wait for one.",
        256,
        minimum=1,
        maximum=65536,
        only=REMOTE,
    )
    connect_seconds: float = setting("Longest wait for a connection.", 10.0, minimum=0.01, only=REMOTE)
    first_token_seconds: float = setting(
        "Longest wait for the first token, with `stream`.", 300.0, minimum=0.01, only=REMOTE
    )
    between_tokens_seconds: float = setting(
        "Longest wait from one token to the next, with `stream`.", 60.0, minimum=0.01, only=REMOTE
    )
    total_seconds: float = setting("Longest time a whole answer may take.", 1800.0, minimum=0.01, only=REMOTE)
    breaker: BreakerSettings = setting("When routes take it for broken.", factory=BreakerSettings)
    owner: str = setting(
        "The organisation that it belongs to, by name or id: for others there is no such model. Left out: everybody's.",
        "",
    )
    priced_as: str = setting("The model whose price it has until it has one of its own.", "")

    @property
    def runs_here(self) -> bool:
        """Whether an engine host of this machine runs it, and not a server that somebody else has started."""
        return self.engine == LOCAL or bool(self.executable)


_SECRET_ACTIONS = ("off", "mask", "refuse")
_UNLESS = " Off unless switched on, because a mask changes what was said."


@dataclass(frozen=True, slots=True)
class SecretSettings:
    """What becomes of each kind of secret, in input or in output."""

    card: str = setting("What becomes of payment card numbers." + _UNLESS, "off", choices=_SECRET_ACTIONS)
    api_key: str = setting(
        "What becomes of API keys (OpenAI, Anthropic, AWS, Google, GitHub, Slack, Hugging Face, Stripe, Interlace and "
        "others) and JSON Web Tokens." + _UNLESS,
        "off",
        choices=_SECRET_ACTIONS,
    )
    private_key: str = setting(
        "What becomes of private keys in PEM, from their BEGIN line to END." + _UNLESS,
        "off",
        choices=_SECRET_ACTIONS,
    )


@dataclass(frozen=True, slots=True)
class ClassifierSettings:
    """A served classifier that reads every input, and refuses what has a label of these."""

    model: str = setting("The model that classifies, by its name under `models`.")
    refuse: tuple[str, ...] = setting("The labels that refuse an input.")
    above: float = setting("The least score of such a label, from 0 to 1, that refuses.", 0.5, minimum=0.0, maximum=1.0)


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """The guards of every request. `deny` are regular expressions, matched on input and output alike."""

    max_input_characters: int = setting("Longest input of one request, in characters.", 1_000_000, minimum=1)
    deny: tuple[str, ...] = setting("Regular expressions that neither input nor output may contain.", ())
    window_characters: int = setting(
        "Longest match of `deny` that is caught before any of it is sent, and so the most output it ever holds back.",
        1024,
        minimum=1,
        maximum=1_000_000,
    )
    secrets_input: SecretSettings = setting("Secrets in what callers send.", factory=SecretSettings)
    secrets_output: SecretSettings = setting("Secrets in what models say.", factory=SecretSettings)
    classifiers: tuple[ClassifierSettings, ...] = setting("Classifiers that every input must pass.", ())


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """What the gateway takes on at once, before it says 429, and how large or slow a request may be."""

    concurrency: int = setting(
        "Requests that run at once, in each worker; an eighth more, one each of organisations that had none.",
        256,
        minimum=1,
    )
    queue: int = setting(
        "Requests that wait for their turn before callers get 429, those first whose organisation has most.",
        1024,
        minimum=0,
    )
    body_bytes: int = setting("Largest request body; sizes such as 10MiB are understood.", 10 << 20, minimum=1024)
    sequences: int = setting("Most answers one request may ask for: prompts times `n`.", 256, minimum=1)
    body_seconds: float = setting("Longest time a caller may take to send its request body.", 60.0, minimum=0.1)
    reader_seconds: float = setting("A caller that reads nothing for so long is dropped.", 60.0, minimum=0.1)
    background_responses: int = setting(
        "Responses in the background that run or wait at once, of one API key; 0 takes none.", 32, minimum=0
    )
    background_bytes: int = setting(
        "Most bytes that one of them may grow to, events included; sizes such as 10MiB are understood.",
        16 << 20,
        minimum=1024,
    )
    file_bytes: int = setting("Largest file of `/v1/files`; 0 takes none.", 512 << 20, minimum=0)
    project_file_bytes: int = setting("All files of a project together.", 10 << 30, minimum=0)
    batch_lines: int = setting(
        "Requests of batches that run at once, beside `concurrency`, while less than half of that is in use; "
        "0 holds batches.",
        8,
        minimum=0,
        maximum=4096,
    )


@dataclass(frozen=True, slots=True)
class ResponseSettings:
    """Responses that are kept for `/v1/responses`, unless a request says `store: false`."""

    days: int = setting("After how many days a stored response is deleted; 0: never.", 30, minimum=0, maximum=36500)
    chain_turns: int = setting(
        "Most responses that `previous_response_id` takes up again, one before the other.",
        1000,
        minimum=1,
        maximum=10**5,
    )
    chain_bytes: int = setting(
        "Most bytes that it takes up again; sizes such as 10MiB are understood.", 10 << 20, minimum=1024
    )
    project_bytes: int = setting("All stored responses of a project together, about.", 10 << 30, minimum=0)


@dataclass(frozen=True, slots=True)
class PerMillion:
    """Dollars per million tokens of each kind. A kind that is left out costs what its parent costs."""

    prompt: Nanos | None = setting("Tokens of the prompt.", None)
    cached: Nanos | None = setting("Prompt tokens read from a cache; else as prompt.", None)
    cache_write: Nanos | None = setting("Prompt tokens written to a cache; else as prompt.", None)
    cache_write_1h: Nanos | None = setting("Prompt tokens written to a cache for an hour; else as cache_write.", None)
    completion: Nanos | None = setting("Generated tokens.", None)
    reasoning: Nanos | None = setting("Generated tokens that only the model reads; else as completion.", None)
    embedding: Nanos | None = setting("Tokens of texts to embed; else as prompt.", None)


@dataclass(frozen=True, slots=True)
class PriceSettings:
    """What a model costs from a moment on. The past is never repriced."""

    model: str = setting("The public name of the model.")
    since: Micros = setting("From when on: a date (midnight UTC), or a time with its offset.")
    usd_per_million: PerMillion = setting("Dollars per million tokens, by kind.", factory=PerMillion)
    usd_per_request: Nanos = setting("Dollars for each request, beside its tokens.", Nanos(0))
    batch_percent: int = setting("What a request of a batch pays, in per cent.", 100, minimum=0, maximum=100)


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """A tier. Its limits hold for each key on it."""

    name: str = setting("What keys call it.")
    rpm: int | None = setting("Requests in any sixty seconds.", None, minimum=0, maximum=10**9)
    tpm: int | None = setting("Tokens in any sixty seconds.", None, minimum=0, maximum=10**12)
    concurrency: int | None = setting("Requests that run at once.", None, minimum=0, maximum=10**6)
    budget_usd: Nanos | None = setting("Dollars in a calendar month.", None)
    priority: int = setting(
        "Who goes first when requests queue: the greater. A model on this machine knows four classes: above 0, 0, "
        "below 0, and batches.",
        0,
        minimum=-1000,
        maximum=1000,
    )
    default_max_tokens: int | None = setting(
        "Longest answer of a request that does not say `max_tokens`.", None, minimum=1, maximum=10**9
    )
    largest_max_tokens: int | None = setting("Largest `max_tokens` there may be.", None, minimum=1, maximum=10**9)
    models: tuple[str, ...] | None = setting(
        "The models and routes its keys may use; left out: all. By a route that is allowed, every model behind it is.",
        None,
    )


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """Where usage is recorded, and how long a request waits for a budget."""

    url: str = setting(
        "The database, such as `postgresql://interlace@db.internal/interlace`; left out: the SQLite file `ledger.db` "
        "in the home folder.",
        "",
    )
    time_zone: str = setting("Whose calendar says when a month begins, such as Africa/Nairobi.", "UTC")
    wait_seconds: float = setting(
        "How long a request waits that would fit its budgets once running ones settle.", 30.0, minimum=0
    )
    waiting: int = setting("How many may wait so.", 1000, minimum=0)
    details_days: int = setting(
        "After how many days tags, times and endpoint of a usage event are erased; 0: never. Sums stay.", 0, minimum=0
    )


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """A Redis or Valkey server that several machines on one PostgreSQL count limits in. Its address may hold a
    password, so it stays in the environment."""

    url: str = setting(
        "The environment variable that holds its address, such as redis://redis.internal:6379/0, or rediss:// with "
        "TLS, written `${NAME}`; left out: each machine counts limits for itself.",
        "",
        secret=True,
    )
    timeout_seconds: float = setting(
        "How long a request waits for it; without an answer this machine counts by itself.",
        0.25,
        minimum=0.005,
        maximum=5.0,
    )


@dataclass(frozen=True, slots=True)
class LogSettings:
    """JSON lines on standard error. `prompts` writes prompt and answer text too; off unless switched on."""

    level: str = setting("Least level that is written.", "info", choices=("debug", "info", "warning", "error"))
    prompts: bool = setting("Write prompt and answer text too.", False)


def _default_home() -> Path:
    return Path(os.path.expanduser("~/.interlace"))  # noqa: PTH111 - pathlib's raises where there is no home folder


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything `interlace serve` needs to know."""

    home: Path = setting("Folder of checkpoints and first API key.", factory=_default_home)
    host: str = setting("Address to listen on; 0.0.0.0 for every network.", "127.0.0.1")
    port: int = setting("Port to listen on; 0 takes a free one.", 8080, minimum=0, maximum=65535)
    workers: int = setting("Gateway processes that answer behind the port.", 1, minimum=1, maximum=64)
    tls: TlsSettings = setting("Encrypted connections.", factory=TlsSettings)
    proxy: ProxySettings = setting("Reverse proxies in front.", factory=ProxySettings)
    cors: CorsSettings = setting("Web pages that may call.", factory=CorsSettings)
    models: tuple[ModelSettings, ...] = setting(f"The served models; {DEFAULT_MODEL} when none is named.", ())
    routes: tuple[RouteSettings, ...] = setting("Public names with several models behind them.", ())
    prices: tuple[PriceSettings, ...] = setting("What models cost. A model without a price is not served.", ())
    plans: tuple[PlanSettings, ...] = setting("Tiers for keys.", ())
    ledger: LedgerSettings = setting("The record of usage.", factory=LedgerSettings)
    redis: RedisSettings = setting("Limits that several machines share.", factory=RedisSettings)
    guards: GuardSettings = setting("Checks of every input and output.", factory=GuardSettings)
    limits: LimitSettings = setting("What is taken on at once.", factory=LimitSettings)
    responses: ResponseSettings = setting("Stored responses.", factory=ResponseSettings)
    log: LogSettings = setting("Logging.", factory=LogSettings)
    drain_seconds: float = setting("How long running requests may finish after SIGTERM.", 30.0, minimum=0)


def faults_of_redis(values: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """A server for several machines where there can be one only: the setting, the problem, the mend."""
    url = (values.get("redis") or {}).get("url")
    if url and not str((values.get("ledger") or {}).get("url") or "").startswith("postgresql"):
        mend = "Remove it: one machine's processes count together without it; or name PostgreSQL in ledger.url"
        yield "redis.url", "is for several machines, and a ledger in SQLite is one machine's", mend
