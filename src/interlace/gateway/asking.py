"""How the command line asks a running server's admin API.

It stands by itself, so that a verb that only asks does not load the ledger and its database.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from interlace.config import Settings, load_settings
from interlace.errors import Conflict, InterlaceError, InvalidRequest, NotFound
from interlace.gateway.chat import ChatError, Server, server_url
from interlace.gateway.wire import ADMIN, convert


@dataclass(frozen=True, slots=True)
class Where:
    """Which ledger is meant: what the options and the environment of a command say."""

    env: Mapping[str, str]
    url: str | None = None
    key: str | None = None
    config: Path | None = None
    home: Path | None = None


def ask_to_reload(where: Where) -> dict[str, list[str]]:
    """Have the running server read its configuration again, however long new models take to load; what came of it.

    Raises `InvalidRequest` for a configuration that is refused, `ConfigError` and `ChatError`.
    """
    settings = load_settings(where.config, where.env, {"home": where.home}, need_keys=False)
    url = where.url or where.env.get("INTERLACE_URL") or server_url(settings)
    server = Server.reached_as(url, where.key, settings, where.env)
    try:
        response = server.send("POST", f"{ADMIN}/reload", None, {}, seconds=None)
    finally:
        server.close()
    if response.is_error:
        raise error_of(response, server.url)
    try:
        return convert(response.json(), dict[str, list[str]])
    except (ValueError, InterlaceError):
        raise ChatError(f"{server.url} did not answer as Interlace's admin API does.") from None


def ask_server(
    method: str,
    path: str,
    body: Mapping[str, Any] | None,
    url: str,
    settings: Settings,
    where: Where,
    *,
    seconds: float | None = 60.0,
) -> Any:
    """What the admin API of a running server says; raises what it raised, `ChatError` and `NoServer`."""
    server = Server.reached_as(url, where.key, settings, where.env)
    try:
        response = server.send(method, ADMIN + path, None, body, seconds=seconds)
    finally:
        server.close()
    if response.is_error:
        raise error_of(response, server.url)
    try:
        return response.json()
    except ValueError:
        raise ChatError(f"{server.url} did not answer as Interlace's admin API does.") from None


def error_of(response: httpx.Response, url: str) -> InterlaceError:
    """What the operation raised over there, as the error it was."""
    try:
        error = response.json()["error"]
        message, param, code = str(error["message"]), error["param"], error["code"]
    except (ValueError, KeyError, TypeError):
        return ChatError(f"{url} answered {response.status_code} {response.reason_phrase}.")
    if response.status_code in (401, 403):
        return ChatError(f"{message} (Name a key that has it with --key or INTERLACE_API_KEY.)")
    if code == "unknown_url":
        return ChatError(f"{url} has no admin API of this version. Is it an older Interlace?")
    kind = {400: InvalidRequest, 404: NotFound, 409: Conflict}.get(response.status_code, ChatError)
    return kind(message, param=param, code=code)
