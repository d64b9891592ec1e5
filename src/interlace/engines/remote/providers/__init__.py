"""The formats of providers, one module each. `interlace.config.PROVIDERS` says which module speaks for which engine;
each has a function `make` (see `wire.Make`), and nothing but that is asked of it from outside."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from interlace.config import PROVIDERS, ModelSettings
from interlace.engines.remote.wire import Fetch, Make, Wire


def wire_of(settings: ModelSettings, env: Mapping[str, str], fetch: Fetch) -> Wire:
    """The wire of a model, its module loaded now. Raises `ConfigError` for a key that is not in `env`."""
    make: Make = importlib.import_module(f"{__name__}.{PROVIDERS[settings.engine]}").make
    return make(settings, env, fetch)
