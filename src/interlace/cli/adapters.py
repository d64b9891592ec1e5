"""The verbs of adapters."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interlace.cli.options import ApiKey, Config, Home, Json, Url

if TYPE_CHECKING:
    from interlace.gateway.asking import Where

adapters = typer.Typer(no_args_is_help=True, help="LoRA adapters that a running server serves over its models.")

Public = Annotated[str, typer.Argument(metavar="MODEL:NAME", help="The adapter, as callers name it.")]


def _where(url: str | None, key: str | None, config: Path | None, home: Path | None) -> Where:
    from interlace.gateway.asking import Where

    return Where(os.environ, url=url, key=key, config=config, home=home)


@adapters.command("list")
def adapters_list(
    url: Url = None, key_text: ApiKey = None, config: Config = None, home: Home = None, as_json: Json = False
) -> None:
    """List the adapters that the running server serves.

    Example: interlace adapters list
    """
    from interlace.gateway.adapter_commands import list_adapters

    raise typer.Exit(list_adapters(_where(url, key_text, config, home), as_json=as_json))


@adapters.command("show")
def adapters_show(
    name: Public,
    url: Url = None,
    key_text: ApiKey = None,
    config: Config = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show one adapter that the running server serves.

    Example: interlace adapters show smollm2-135m-instruct:support
    """
    from interlace.gateway.adapter_commands import show_adapter

    raise typer.Exit(show_adapter(name, _where(url, key_text, config, home), as_json=as_json))


@adapters.command("add")
def adapters_add(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The adapter, as PEFT saves it.")],
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="The served model that it was trained for.")],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Callers write MODEL:NAME.")],
    owner: Annotated[
        str | None, typer.Option("--owner", metavar="ORG", help="The organisation it belongs to; else everybody's.")
    ] = None,
    url: Url = None,
    key_text: ApiKey = None,
    config: Config = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Copy an adapter into the home folder, and have the running server serve the copy, now and after restarts.

    It is tried first: one that does not fit its model changes nothing. The configuration is read again, as by
    `interlace reload`.

    Example: interlace adapters add ./support --model smollm2-135m-instruct --name support --owner acme
    """
    from interlace.gateway.adapter_commands import add_adapter

    where = _where(url, key_text, config, home)
    raise typer.Exit(add_adapter(folder, model, name, owner, where, as_json=as_json))


@adapters.command("rm")
def adapters_rm(
    name: Public,
    url: Url = None,
    key_text: ApiKey = None,
    config: Config = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Have the running server serve an added adapter no more; requests that have it keep it to their end.

    Example: interlace adapters rm smollm2-135m-instruct:support
    """
    from interlace.gateway.adapter_commands import remove_adapter

    raise typer.Exit(remove_adapter(name, _where(url, key_text, config, home), as_json=as_json))


@adapters.command("compile")
def adapters_compile(home: Home = None, as_json: Json = False) -> None:
    """Compile what engines run adapters by, faster, with this machine's C++ compiler, into the home folder.

    Optional: adapters run without it too. Engines that start afterwards use it. It is for this processor and the
    installed runtime; after an upgrade of either, compile it again.

    Example: interlace adapters compile
    """
    import json

    from interlace.config import load_settings
    from interlace.engines.local.kernel import compile_kernel

    made = compile_kernel(load_settings(overrides={"home": home}, need_keys=False).home)
    print(json.dumps({"path": str(made)}) if as_json else made)
