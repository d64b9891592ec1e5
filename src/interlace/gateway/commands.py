"""The verbs of the command line that belong to the gateway, as plain functions that return an exit code."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interlace.config import ModelSettings, Settings, check_config, find_config, load_settings
from interlace.errors import CheckpointError, ConfigError


def serve_command(
    *,
    config: Path | None = None,
    host: str | None = None,
    port: int | None = None,
    home: Path | None = None,
    log_level: str | None = None,
    env: Mapping[str, str] | None = None,
) -> int:
    """`interlace serve`: pull what is missing, listen, answer until SIGTERM. Exit codes: 0 drained, 1 failed, 2 wrong
    configuration."""
    env = os.environ if env is None else env
    try:
        settings = load_settings(config, env, {"host": host, "port": port, "home": home, "log.level": log_level})
        settings = _pull_missing(settings)
        from interlace.gateway.serve import serve  # the HTTP server is heavy; other verbs don't need it

        return serve(settings, env)
    except ConfigError as error:
        print(error.message, file=sys.stderr)
        return 2
    except CheckpointError as error:
        print(f"interlace: {error.message}", file=sys.stderr)
        return 1


def config_check_command(path: Path | None = None, *, env: Mapping[str, str] | None = None) -> int:
    """`interlace config check`: one line per problem on standard output; exit code 1 when there is any."""
    env = os.environ if env is None else env
    found = find_config(path, env)
    problems = check_config(path, env)
    for problem in problems:
        print(problem)
    if not problems:
        print(f"{found} is good" if found else "No interlace.yaml here; the defaults are good")
    return 1 if problems else 0


def models_command(
    *,
    as_json: bool = False,
    config: Path | None = None,
    home: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> int:
    """`interlace models`: what the running server says it serves, else what the configuration names."""
    env = os.environ if env is None else env
    try:
        settings = load_settings(config, env, {"home": home})
    except ConfigError as error:
        print(error.message, file=sys.stderr)
        return 2
    rows = _served(settings, env)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        _print_table(rows)
    return 0


def _pull_missing(settings: Settings) -> Settings:
    """Bring checkpoints onto the disk that are named but not there yet; a source (`hf:…`) becomes the path it is at.

    A model that cannot be had is told of and left to its engine, which will say so too: it must not keep the others
    from being served. When there are no others, `CheckpointError`.
    """
    present: list[ModelSettings] = []
    reasons: list[str] = []
    for model in settings.models:
        try:
            present.append(_present(model, settings.home))
        except CheckpointError as error:
            present.append(model)
            reasons.append(f"{model.name}: {error.message}")
    if len(reasons) == len(settings.models):
        raise CheckpointError("\n".join(reasons))
    for reason in reasons:
        print(f"interlace: {reason}", file=sys.stderr)
    return dataclasses.replace(settings, models=tuple(present))


def _present(model: ModelSettings, home: Path) -> ModelSettings:
    from interlace import models
    from interlace.models.bars import progress_for_people

    try:
        models.resolve(model.checkpoint, home)
        return model
    except CheckpointError:
        if model.checkpoint.startswith(("/", ".", "~")):
            raise  # a path that is not there, or holds nothing we can serve, cannot be pulled
    with progress_for_people() as progress:
        pulled = models.pull(model.checkpoint, home, progress=progress)
    return dataclasses.replace(model, checkpoint=str(pulled.path))


def _served(settings: Settings, env: Mapping[str, str]) -> list[dict[str, Any]]:
    running = _ask_server(settings, env)
    if running is not None:
        return running
    return [
        {"id": model.name, "checkpoint": model.checkpoint, "engine": model.engine, "state": "not running"}
        for model in settings.models
    ]


def _ask_server(settings: Settings, env: Mapping[str, str]) -> list[dict[str, Any]] | None:
    """The model list of the server at the configured address; None when none answers there."""
    import httpx

    from interlace.gateway.keys import read_key

    key = read_key(settings.home, env)
    if key is None:
        return None
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104 (read, not bound)
    try:
        answer = httpx.get(
            f"http://{host}:{settings.port}/v1/models",
            headers={"authorization": f"Bearer {key}"},
            timeout=2,
            trust_env=False,  # a proxy has no business between us and our own server
        )
        rows = answer.json()["data"] if answer.status_code == 200 else None
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None  # something else listens there, or nothing
    return rows if isinstance(rows, list) else None


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = ("id", "state", "kind", "context_length", "precision", "checkpoint")
    shown = [column for column in columns if any(row.get(column) not in (None, "") for row in rows)]
    table = Table(*(column.replace("_", " ") for column in shown))
    for row in rows:
        table.add_row(*(str(row.get(column, "")) for column in shown))
    Console().print(table)
