"""Another version of Interlace: a copy of this one in a folder, which may get one more step of the schema."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import interlace
from interlace.ledger.migrations import HEAD, OLDEST

NEXT = f"{int(HEAD) + 1:04}"
EXPAND = """
    op.add_column("usage_events", sa.Column("more", sa.String(8)))
    op.create_table("newer", sa.Column("id", sa.BigInteger, primary_key=True))
"""
CONTRACT = """
    op.drop_table("event_tags")
"""


def copied(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """A copy of the package, and the command that runs it."""
    package = folder / "installed" / "interlace"
    shutil.copytree(Path(interlace.__file__).parent, package)
    return package, ("env", f"PYTHONPATH={package.parent}", sys.executable, "-m", "interlace")


def add_step(package: Path, does: str, oldest: str = OLDEST) -> None:
    """Make it a version with one more step; `oldest`: from which versions it can be used afterwards."""
    steps = package / "ledger" / "migrations"
    head = f'import sqlalchemy as sa\nfrom alembic import op\n\nrevision = "{NEXT}"\ndown_revision = "{HEAD}"\n'
    (steps / "versions" / f"{NEXT}_more.py").write_text(f"{head}\n\ndef upgrade() -> None:{does}")
    code = (steps / "__init__.py").read_text()
    code = code.replace(f'HEAD = "{HEAD}"', f'HEAD = "{NEXT}"').replace(f'OLDEST = "{OLDEST}"', f'OLDEST = "{oldest}"')
    (steps / "__init__.py").write_text(code)
