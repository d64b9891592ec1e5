"""Servers that speak OpenAI's API, by name: what a setting that was left out is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from interlace.config import ModelSettings
from interlace.engines.remote.providers.openai import OpenAIWire
from interlace.engines.remote.providers.openai_peculiar import PRESETS
from interlace.engines.remote.secret import read_key
from interlace.engines.remote.wire import Fetch, Usual


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
