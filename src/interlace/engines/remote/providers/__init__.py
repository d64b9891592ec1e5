"""The formats of providers, one module each. `interlace.config.PROVIDERS` says which module speaks for which engine;
each has a function `make` (see `wire.Make`), and where it fills in settings that were left out, a function `usual`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType

from interlace.config import PROVIDERS, ModelSettings
from interlace.engines.remote.wire import Fetch, Make, Usual, Wire


def wire_of(settings: ModelSettings, env: Mapping[str, str], fetch: Fetch) -> Wire:
    """The wire of a model, its module loaded now. Raises `ConfigError` for a key that is not in `env`."""
    make: Make = _module(settings).make
    return make(settings, env, fetch)


def usual_of(settings: ModelSettings, env: Mapping[str, str]) -> Usual:
    """Where a model is asked, and by which key; asks nobody."""
    module = _module(settings)
    if not hasattr(module, "usual"):
        return Usual(settings.base_url, settings.api_key)
    found: Usual = module.usual(settings, env)
    return found


def _module(settings: ModelSettings) -> ModuleType:
    return importlib.import_module(f"{__name__}.{PROVIDERS[settings.engine]}")
