"""Usage events are marked where what a provider reports contradicts what was seen."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the step."""
    op.add_column("usage_events", sa.Column("disputed", sa.Boolean(), nullable=False, server_default=sa.false()))
