"""A response that runs in the background is known by the process that runs it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Make the step."""
    op.add_column("stored_responses", sa.Column("runner", sa.String(96)))
