"""What the verbs of the ledger share: each says what one operation of `ledger/operations` is given, and is carried out
on the ledger at home, or through the server that has it open."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

import typer

from interlace.cli.options import ApiKey, Config, Home, Json, Url

Given = dict[str, Any]


def verb_of(group: typer.Typer, operation: str) -> Callable[[Callable[..., Given]], Callable[..., None]]:
    """Make a verb of a function that says what the operation is given."""

    def make(function: Callable[..., Given]) -> Callable[..., None]:
        def run(
            *,
            url: Url = None,
            key_text: ApiKey = None,
            config: Config = None,
            home: Home = None,
            as_json: Json = False,
            **options: Any,
        ) -> None:
            from interlace.gateway.asking import Where
            from interlace.gateway.ledger_commands import ledger_command

            where = Where(os.environ, url=url, key=key_text, config=config, home=home)
            raise typer.Exit(ledger_command(operation, said(function(**options)), where, as_json=as_json))

        shared = inspect.signature(run, eval_str=True).parameters.values()
        own = inspect.signature(function, eval_str=True).parameters.values()
        every = [*own, *(each for each in shared if each.kind is each.KEYWORD_ONLY)]
        each_named = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in every]
        run.__signature__ = inspect.Signature(each_named)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in each_named}
        run.__doc__ = function.__doc__
        group.command(operation.partition(".")[2])(run)
        return run

    return make


def said(values: Given) -> Given:
    """What was said on the command line; the word none says that there shall be none."""
    return {name: None if value == "none" else value for name, value in values.items() if value is not None}


def listed(text: str | None) -> list[str] | str | None:
    """Words with commas between."""
    if text is None or text == "none":
        return text
    return [word.strip() for word in text.split(",") if word.strip()]


def number(text: str | None, option: str) -> int | str | None:
    """A number, or the word none."""
    if text is None or text == "none":
        return text
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number; write digits, or none", param_hint=option) from None
