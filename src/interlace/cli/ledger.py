"""The record: check it, and take it out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interlace.cli.options import Config, Home, Json

ledger = typer.Typer(no_args_is_help=True, help="The record of what was used: check it, export it, back it up.")

Day = Annotated[str | None, typer.Option(metavar="DAY", help="Such as 2026-01-31, itself included.")]


@ledger.command("check")
def ledger_check(config: Config = None, home: Home = None, as_json: Json = False) -> None:
    """Recompute every cost, balance and sum, and say what does not agree.

    Works beside a running server; writes nothing. Exit code 1 when anything is wrong.

    Example: interlace ledger check
    """
    from interlace.config import load_settings
    from interlace.ledger.commands import check_command

    settings = load_settings(config, overrides={"home": home}, need_keys=False)
    raise typer.Exit(check_command(settings, as_json=as_json))


@ledger.command("backup")
def ledger_backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to put it; a new file.")],
    config: Config = None,
    home: Home = None,
) -> None:
    """Copy the record to a file: one moment of it, whole, private, while the server runs.

    For SQLite; a PostgreSQL database has pg_dump. The home folder's secret and files are not in it.

    Example: interlace ledger backup ledger-2026-01-31.db
    """
    from interlace.config import load_settings
    from interlace.ledger.commands import backup_command

    settings = load_settings(config, overrides={"home": home}, need_keys=False)
    raise typer.Exit(backup_command(settings, file))


@ledger.command("restore")
def ledger_restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `interlace ledger backup` made.")],
    config: Config = None,
    home: Home = None,
) -> None:
    """Put a backup in the place of the record, and check it. What was there stays beside it, under another name.

    No server may run meanwhile. What was used since the backup is known no more, to budgets neither.

    Example: interlace ledger restore ledger-2026-01-31.db
    """
    from interlace.config import load_settings
    from interlace.ledger.commands import restore_command

    settings = load_settings(config, overrides={"home": home}, need_keys=False)
    raise typer.Exit(restore_command(settings, file))


@ledger.command("export")
def ledger_export(
    format: Annotated[str, typer.Option("--format", metavar="FORMAT", help="beancount or csv.")],
    events: Annotated[bool, typer.Option("--events", help="Every event, instead of sums by day and project.")] = False,
    since: Day = None,
    until: Day = None,
    output: Annotated[Path | None, typer.Option("--output", metavar="FILE", help="Else standard output.")] = None,
    config: Config = None,
    home: Home = None,
) -> None:
    """Write the record for accountants (beancount) or spreadsheets (CSV).

    Works beside a running server.

    Example: interlace ledger export --format beancount --output usage.beancount
    """
    from interlace.config import load_settings
    from interlace.ledger.commands import export_command

    settings = load_settings(config, overrides={"home": home}, need_keys=False)
    raise typer.Exit(export_command(settings, format=format, events=events, since=since, until=until, output=output))
