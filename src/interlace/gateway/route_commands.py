"""`interlace route list` and `interlace route explain`: what routes are, and what one would do with a request."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from interlace.config import load_settings, public_name
from interlace.errors import InvalidRequest
from interlace.gateway.asking import Where, ask_server
from interlace.gateway.chat import ChatError, NoServer, server_url
from interlace.gateway.route_operations import Explain, RouteView, offline
from interlace.gateway.routing.explain import Explanation, rows_of
from interlace.gateway.wire import convert
from interlace.models import print_table


def explain_command(text: str, who: Mapping[str, Any], where: Where, *, as_json: bool) -> int:
    """Print what would become of the request in `text` (JSON; `-`: standard input). Exit codes: 0, or 2 for a request
    that makes no sense.

    By the running server's state where one runs, else by the configuration alone.
    """
    try:
        request = msgspec.json.decode((sys.stdin.read() if text == "-" else text).encode(), type=dict[str, Any])
        given = {"request": request, **who}
        explanation = msgspec.convert(_live("routes.explain", given, where), Explanation)
    except NoServer:
        settings = load_settings(where.config, where.env, {"home": where.home}, need_keys=False)
        local = {model.name: model.engine == "local" for model in settings.models}
        local |= {public_name(model.name, one.name): True for model in settings.models for one in model.adapters}
        try:
            explanation = offline(settings.routes, local, convert(given, Explain), time.time_ns() // 1000)
        except InvalidRequest as error:
            return _wrong(error.message)
    except (msgspec.DecodeError, UnicodeError) as error:
        return _wrong(f"The request is not a JSON object ({error}). Write it as a caller would send it.")
    except InvalidRequest as error:
        return _wrong(error.message)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(explanation), indent=2).decode())
    else:
        _print(explanation)
    return 0


def list_command(where: Where, *, as_json: bool) -> int:
    """Print the routes, and how their models stand where a server runs."""
    try:
        routes = msgspec.convert(_live("routes.list", {}, where), list[RouteView])
    except NoServer:
        settings = load_settings(where.config, where.env, {"home": where.home}, need_keys=False)
        routes = [
            RouteView(name=route.name, policy=route.policy, settings=msgspec.to_builtins(route), models=[])
            for route in settings.routes
        ]
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(routes), indent=2).decode())
        return 0
    cells = []
    for route in routes:
        for one in route.models:
            first = "" if one.first_token_seconds is None else f"{one.first_token_seconds:.3f}"
            cells.append([route.name, route.policy, one.model, one.state, one.breaker, first])
        if not route.models:
            cells.append(
                [route.name, route.policy, ", ".join(m["model"] for m in route.settings["models"]), "", "", ""]
            )
    if not cells:
        print("There are no routes.", file=sys.stderr)
        return 0
    print_table(["ROUTE", "POLICY", "MODEL", "STATE", "BREAKER", "FIRST TOKEN S"], cells, right=("FIRST TOKEN S",))
    return 0


def _live(name: str, given: Mapping[str, Any], where: Where) -> Any:
    """The running server's answer; raises `NoServer` where none runs and none was named."""
    settings = load_settings(where.config, where.env, {"home": where.home}, need_keys=False)
    named = where.url or where.env.get("INTERLACE_URL")
    method, path = {"routes.list": ("GET", "/routes"), "routes.explain": ("POST", "/routes/explain")}[name]
    try:
        answer = ask_server(
            method, path, None if method == "GET" else given, named or server_url(settings), settings, where
        )
    except NoServer as error:
        if named:
            raise ChatError(error.message) from None
        raise
    return answer["data"] if method == "GET" else answer


def _print(explanation: Explanation) -> None:
    if explanation.route is None:
        print(f"{explanation.model} is a model: it is asked, and nobody else.")
        return
    headings, cells = rows_of(explanation)
    print_table(headings, cells, right=("OF 100", "FIRST TOKEN S", "ABOUT USD"))
    for row in explanation.steps:
        if row.place is None:
            print(f"{row.model} is passed over: {row.why}")
    if explanation.shadow is not None:
        print(f"{explanation.shadow} is asked as well, unseen.")
    if not explanation.live:
        print("No server runs: this is as if every model were ready.", file=sys.stderr)


def _wrong(message: str) -> int:
    print(f"Error: {message}", file=sys.stderr)
    return 2
