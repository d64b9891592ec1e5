# ruff: noqa: RUF009 (`setting` is a field specifier; ruff knows only `field` itself)
"""What can be set, with defaults, bounds and one line of documentation each: the reference page is made from this.

The dataclasses hold values only. Bounds and choices stand in each field's metadata and are checked by the reader, which
knows the line a value came from.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

DEFAULT_MODEL = "smollm2-135m-instruct"


def setting(
    doc: str,
    default: Any = MISSING,
    *,
    factory: Any = MISSING,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[str] = (),
) -> Any:
    """A dataclass field that carries its documentation, bounds and choices for the reader."""
    metadata = {"doc": doc, "minimum": minimum, "maximum": maximum, "choices": tuple(choices)}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """One served model. `cache_bytes` caps the KV cache; `threads` 0 means one per physical core."""

    name: str = setting("The public name callers put into `model`.")
    checkpoint: str = setting(
        "A name in the store (`interlace checkpoints list`), or a path that starts with / ./ or ~."
    )
    engine: str = setting("What runs it.", "local", choices=("local",))
    precision: str = setting(
        "Arithmetic and weights: as in the file, or converted.", "file", choices=("file", "f32", "bf16", "int8")
    )
    sampling: str = setting(
        "What fills temperature, top_p, ... that a caller leaves out: what the model's makers suggest, or OpenAI's "
        "defaults (temperature 1).",
        "model",
        choices=("model", "openai"),
    )
    cache_bytes: int = setting("Cap of the KV cache; sizes such as 512MiB are understood.", 1 << 30, minimum=1 << 20)
    context_length: int = setting("Longest prompt plus answer in tokens; 0: what the checkpoint says.", 0, minimum=0)
    max_sequences: int = setting("Sequences that run at once.", 64, minimum=1, maximum=4096)
    max_waiting: int = setting("Sequences queued in the engine before callers get 429.", 256, minimum=0)
    step_tokens: int = setting(
        "Token budget of one step, prefill and decode together; four times as much while nobody is being answered.",
        256,
        minimum=1,
    )
    threads: int = setting("Threads of the engine; 0: one per physical core.", 0, minimum=0, maximum=1024)


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


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """What the gateway takes on at once, before it says 429, and how large or slow a request may be."""

    concurrency: int = setting("Requests that run at once.", 256, minimum=1)
    queue: int = setting("Requests that wait for their turn before callers get 429.", 1024, minimum=0)
    body_bytes: int = setting("Largest request body; sizes such as 10MiB are understood.", 10 << 20, minimum=1024)
    sequences: int = setting("Most answers one request may ask for: prompts times `n`.", 256, minimum=1)
    body_seconds: float = setting("Longest time a caller may take to send its request body.", 60.0, minimum=0.1)
    reader_seconds: float = setting("A caller that reads nothing for so long is dropped.", 60.0, minimum=0.1)


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
    models: tuple[ModelSettings, ...] = setting(f"The served models; {DEFAULT_MODEL} when none is named.", ())
    guards: GuardSettings = setting("Checks of every input and output.", factory=GuardSettings)
    limits: LimitSettings = setting("What is taken on at once.", factory=LimitSettings)
    log: LogSettings = setting("Logging.", factory=LogSettings)
    drain_seconds: float = setting("How long running requests may finish after SIGTERM.", 30.0, minimum=0)
