"""The verbs of models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interlace.cli.options import ApiKey, Config, Home, Json, Url

if TYPE_CHECKING:
    from interlace.gateway.asking import Where

models = typer.Typer(invoke_without_command=True)

Public = Annotated[str, typer.Argument(metavar="MODEL", help="The model, as callers name it.")]


def _where(url: str | None, key: str | None, config: Path | None, home: Path | None) -> Where:
    from interlace.gateway.asking import Where

    return Where(os.environ, url=url, key=key, config=config, home=home)


@models.callback()
def models_callback(
    context: typer.Context, url: Url = None, config: Config = None, home: Home = None, as_json: Json = False
) -> None:
    """List the served models, add checkpoints of the store to them, and remove them.

    Without a verb: those of the running server that the key may use; when none runs, those the configuration names.

    Example: interlace models --json
    """
    if context.invoked_subcommand is not None:
        if url or config or home or as_json:
            verb = context.invoked_subcommand
            raise typer.BadParameter(f"Write options behind the verb: interlace models {verb} ...")
        return
    from interlace.gateway.commands import models_command

    raise typer.Exit(models_command(as_json=as_json, url=url, config=config, home=home))


@models.command("list")
def models_list(
    url: Url = None, key_text: ApiKey = None, config: Config = None, home: Home = None, as_json: Json = False
) -> None:
    """List all models that the running server serves: whose they are, how they are, and whose price they have.

    Example: interlace models list
    """
    from interlace.gateway.model_commands import list_models

    raise typer.Exit(list_models(_where(url, key_text, config, home), as_json=as_json))


@models.command("show")
def models_show(
    name: Public,
    url: Url = None,
    key_text: ApiKey = None,
    config: Config = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show one model that the running server serves.

    Example: interlace models show smollm2-135m-instruct
    """
    from interlace.gateway.model_commands import show_model

    raise typer.Exit(show_model(name, _where(url, key_text, config, home), as_json=as_json))


@models.command("add")
def models_add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What callers put into `model`.")],
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", metavar="CHECKPOINT", help="Its name in the server's store.")
    ],
    owner: Annotated[
        str | None, typer.Option("--owner", metavar="ORG", help="The organisation it belongs to; else everybody's.")
    ] = None,
    like: Annotated[
        str | None,
        typer.Option("--like", metavar="MODEL", help="The model whose price it has until it has one of its own."),
    ] = None,
    url: Url = None,
    key_text: ApiKey = None,
    config: Config = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Have the running server serve a checkpoint of its store, now and after restarts.

    It is loaded first: where it cannot be, or memory is short, nothing is changed. The configuration is read again, as
    by `interlace reload`.

    Example: interlace models add agri --checkpoint agri --owner acme --like smollm2-135m-instruct
    """
    from interlace.gateway.model_commands import add_model

    where = _where(url, key_text, config, home)
    raise typer.Exit(add_model(name, checkpoint, owner, like, where, as_json=as_json))


@models.command("rm")
def models_rm(
    name: Public,
    url: Url = None,
    key_text: ApiKey = None,
    config: Config = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Have the running server serve an added model no more; requests that have it keep it to their end.

    The checkpoint stays in the store.

    Example: interlace models rm agri
    """
    from interlace.gateway.model_commands import remove_model

    raise typer.Exit(remove_model(name, _where(url, key_text, config, home), as_json=as_json))
