"""Models that were added by command, as part of the settings that are served by."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

from interlace.config import AddedModel, ModelSettings, Settings, read_added_models
from interlace.errors import CheckpointError, ConfigError

_log = logging.getLogger(__name__)


def with_added_models(settings: Settings, precision: str | None = None) -> Settings:
    """Settings with the models that were added by command, in that precision where one is given. One whose name the
    configuration has given to something else, or whose checkpoint is gone, is left out, and the log says so. Raises
    `ConfigError`, also where a guard or a route would then lead to nothing."""
    added = read_added_models(settings.home)
    if not added:
        return settings
    taken = {model.name for model in settings.models} | {route.name for route in settings.routes}
    more: list[ModelSettings] = []
    for entry in added:
        if entry.name in taken or not lies_there(entry, settings.home):
            fields = {"model": entry.name, "checkpoint": entry.checkpoint}
            _log.warning(
                "an added model is not served: its name is taken, or its checkpoint gone", extra={"fields": fields}
            )
            continue
        taken.add(entry.name)
        model = ModelSettings(entry.name, entry.checkpoint, owner=entry.owner, priced_as=entry.like)
        more.append(model if precision is None else dataclasses.replace(model, precision=precision))
    whole = dataclasses.replace(settings, models=(*settings.models, *more))
    for where, name in _missing(whole, {entry.name for entry in added}):
        raise ConfigError(
            f"{where} names {name!r}, an added model that is not served now. Add it again with `interlace models add`, "
            "or name another."
        )
    return whole


def lies_there(entry: AddedModel, home: Path) -> bool:
    """Whether the store has the entry's checkpoint."""
    from interlace.models import find_checkpoint  # reads checkpoints, so it loads numpy, which few gateways need

    try:
        return find_checkpoint(entry.checkpoint, home) is not None
    except CheckpointError:
        return False


def _missing(settings: Settings, added: set[str]) -> Iterator[tuple[str, str]]:
    """Where the configuration names an added model that is not served."""
    from interlace.gateway.routing import models_of

    away = added - {model.name for model in settings.models}
    for i, guard in enumerate(settings.guards.classifiers):
        if guard.model in away:
            yield f"guards.classifiers[{i}].model", guard.model
    for route in settings.routes:
        for name in models_of(route):
            if name in away:
                yield f"The route {route.name}", name
