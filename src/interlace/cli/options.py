"""Options that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Home = Annotated[
    Path | None,
    typer.Option("--home", help="Folder of checkpoints and key; else INTERLACE_HOME, interlace.yaml, or ~/.interlace."),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", help="The configuration; else INTERLACE_CONFIG, else ./interlace.yaml if it is there."),
]
Url = Annotated[str | None, typer.Option("--url", help="The server; else INTERLACE_URL, else where `serve` listens.")]
ApiKey = Annotated[
    str | None, typer.Option("--key", help="API key; else INTERLACE_API_KEY, else the one kept at home.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table.")]

# Of the ledger's verbs
Org = Annotated[str | None, typer.Option("--org", metavar="ORG", help="The organisation, by name or id.")]
Project = Annotated[str | None, typer.Option("--project", metavar="PROJECT", help="The project, by name or id.")]
Budget = Annotated[
    str | None, typer.Option("--budget-usd", metavar="USD", help="Dollars in a calendar month; none: no bound.")
]
Rename = Annotated[str | None, typer.Option("--name", metavar="NAME", help="A new name.")]
Models = Annotated[str | None, typer.Option("--models", metavar="A,B", help="The models it may use; none: all.")]
