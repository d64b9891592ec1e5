"""The verbs of routes."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from interlace.cli.options import ApiKey, Config, Home, Json, Url
from interlace.cli.verb import listed, said

route = typer.Typer(no_args_is_help=True, help="Routes: public names with several models behind them.")


@route.command("list")
def route_list(
    url: Url = None, key_text: ApiKey = None, config: Config = None, home: Home = None, as_json: Json = False
) -> None:
    """List the routes, and how their models stand where a server runs.

    Example: interlace route list
    """
    from interlace.gateway.asking import Where
    from interlace.gateway.route_commands import list_command

    where = Where(os.environ, url=url, key=key_text, config=config, home=home)
    raise typer.Exit(list_command(where, as_json=as_json))


@route.command("explain")
def route_explain(
    request: Annotated[str, typer.Argument(metavar="JSON", help="A request as a caller would send it; - reads it.")],
    plan: Annotated[str | None, typer.Option(metavar="PLAN", help="Of a key on this plan.")] = None,
    tags: Annotated[str | None, typer.Option(metavar="A,B", help="With these tags.")] = None,
    at: Annotated[str | None, typer.Option(metavar="TIME", help="At this moment, with its offset; else now.")] = None,
    conversation: Annotated[
        str | None, typer.Option(metavar="WORD", help="With this header x-interlace-conversation.")
    ] = None,
    of_key: Annotated[
        str | None, typer.Option("--of-key", metavar="ID", help="Of the key with this id, for its conversations.")
    ] = None,
    url: Url = None,
    key_text: ApiKey = None,
    config: Config = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show which models would be asked for a request, in which order, and why. Asks no model.

    By the state of the running server, else by the configuration alone.

    Example: interlace route explain '{"model": "smart", "messages": [{"role": "user", "content": "Hello"}]}'
    """
    from interlace.gateway.asking import Where
    from interlace.gateway.route_commands import explain_command

    who = said({"plan": plan, "tags": listed(tags), "at": at, "conversation": conversation, "key": of_key})
    where = Where(os.environ, url=url, key=key_text, config=config, home=home)
    raise typer.Exit(explain_command(request, who, where, as_json=as_json))
