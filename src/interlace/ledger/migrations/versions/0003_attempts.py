"""Usage events know the route they were asked by, and each attempt at an answer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the step."""
    op.add_column("usage_events", sa.Column("route", sa.String(length=128), nullable=True))
    op.add_column("usage_events", sa.Column("attempts", sa.String(), nullable=True))
    op.add_column("usage_events", sa.Column("attempt_us", sa.String(), nullable=True))
