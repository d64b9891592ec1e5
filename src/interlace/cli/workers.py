"""The processes that answer, and what they hold of budgets."""

from __future__ import annotations

from typing import Annotated

import typer

from interlace.cli.verb import Given, verb_of

workers = typer.Typer(no_args_is_help=True, help="The processes that answer, and what they hold of budgets.")


@verb_of(workers, "workers.list")
def workers_list() -> Given:
    """List the workers of all machines that share the database.

    Example: interlace workers list
    """
    return {}


@verb_of(workers, "workers.close")
def workers_close(worker: Annotated[str, typer.Argument(metavar="WORKER")]) -> Given:
    """Take back what a worker holds of budgets: its machine is gone, or cannot be reached for long.

    One that lives after all takes nothing on any more, and what it has done is recorded.

    Example: interlace workers close 9f86d081884c-w1
    """
    return {"worker": worker}
