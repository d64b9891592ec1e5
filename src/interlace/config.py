"""`interlace.yaml` plus environment → one frozen `Settings` per load. Read once, no I/O afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """One served model. `cache_bytes` caps the KV cache; `threads` 0 means one per physical core."""

    name: str
    checkpoint: str  # a name in the store, or a path
    engine: str = "local"
    precision: str = "file"  # file, f32, bf16, int8
    cache_bytes: int = 1 << 30
    context_length: int = 0  # 0: what the checkpoint says
    max_sequences: int = 64  # that run at once
    max_waiting: int = 256  # sequences queued before 429
    step_tokens: int = 512  # token budget of one step, prefill and decode together
    threads: int = 0


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """The guards of every request. `deny` are regular expressions, matched on input and output alike."""

    max_input_characters: int = 1_000_000
    deny: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """What the gateway takes on at once, before it says 429, and how large a body may be."""

    concurrency: int = 256
    queue: int = 1024
    body_bytes: int = 10 << 20


@dataclass(frozen=True, slots=True)
class LogSettings:
    """JSON lines on standard error. `prompts` writes prompt and answer text too; off unless switched on."""

    level: str = "info"
    prompts: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything `interlace serve` needs to know."""

    home: Path
    host: str = "127.0.0.1"
    port: int = 8080
    models: tuple[ModelSettings, ...] = ()
    guards: GuardSettings = field(default_factory=GuardSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    log: LogSettings = field(default_factory=LogSettings)
    drain_seconds: float = 30.0
