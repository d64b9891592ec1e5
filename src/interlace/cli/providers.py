"""Models of other servers: what is configured, and whether it works."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from interlace.cli.options import ApiKey, Config, Home, Json, Url

providers = typer.Typer(no_args_is_help=True, help="Models of other servers: list them, check that they work.")


@providers.command("list")
def providers_list(config: Config = None, home: Home = None, as_json: Json = False) -> None:
    """List the models of other servers that the configuration names, and whether their keys are set.

    Keys themselves are never shown.

    Example: interlace providers list
    """
    from interlace.gateway.asking import Where
    from interlace.gateway.provider_commands import providers_list_command

    raise typer.Exit(providers_list_command(Where(os.environ, config=config, home=home), as_json=as_json))


@providers.command("check")
def providers_check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The public name of the model.")],
    url: Url = None,
    key_text: ApiKey = None,
    config: Config = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Ask a provider one tiny question for each thing it should be able to do, and show what worked.

    Uses the key of the configuration and costs a little: what, is shown. No server has to run. Exit code 1 when
    something that should work fails.

    Example: interlace providers check large
    """
    from interlace.gateway.asking import Where
    from interlace.gateway.provider_commands import providers_check_command

    where = Where(os.environ, url=url, key=key_text, config=config, home=home)
    raise typer.Exit(providers_check_command(name, where, as_json=as_json))
