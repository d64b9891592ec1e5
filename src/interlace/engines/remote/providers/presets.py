"""Servers that speak OpenAI's API, by name: what a setting that was left out is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from interlace.config import ModelSettings
from interlace.engines.remote.providers.openai import OpenAIWire
from interlace.engines.remote.secret import read_key
from interlace.engines.remote.wire import Fetch, Usual


@dataclass(frozen=True, slots=True)
class Preset:
    """What a server is like, as its makers document it. No `api_key`: it asks for none."""

    base_url: str
    api_key: str = ""
    extensions: bool = False
    max_tokens_field: str = "max_tokens"


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "mistral": Preset("https://api.mistral.ai/v1", "${MISTRAL_API_KEY}"),
        "groq": Preset("https://api.groq.com/openai/v1", "${GROQ_API_KEY}", max_tokens_field="max_completion_tokens"),
        "together": Preset("https://api.together.xyz/v1", "${TOGETHER_API_KEY}"),
        "ollama": Preset("http://127.0.0.1:11434/v1"),
        "vllm": Preset("http://127.0.0.1:8000/v1", extensions=True),
    }
)


def filled(settings: ModelSettings) -> ModelSettings:
    """The settings, with what was left out as the server's makers have it."""
    preset = PRESETS[settings.engine]
    extensions, field = settings.extensions, settings.max_tokens_field
    return dataclasses.replace(
        settings,
        base_url=settings.base_url or preset.base_url,
        api_key=settings.api_key or preset.api_key,
        extensions=preset.extensions if extensions is None else extensions,
        max_tokens_field=preset.max_tokens_field if field is None else field,
    )


def usual(settings: ModelSettings, env: Mapping[str, str]) -> Usual:
    """See `wire.Usual`."""
    del env
    settings = filled(settings)
    return Usual(settings.base_url, settings.api_key)


def make(settings: ModelSettings, env: Mapping[str, str], fetch: Fetch) -> OpenAIWire:
    """See `wire.Make`."""
    del fetch
    settings = filled(settings)
    return OpenAIWire(settings, read_key(settings.api_key, env))
