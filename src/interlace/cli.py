"""The command line: one verb, one function, a few lines; each calls the room that does the work."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, add_completion=True, rich_markup_mode=None)


def main() -> None:
    """Entry point of the command `interlace`."""
    app()
