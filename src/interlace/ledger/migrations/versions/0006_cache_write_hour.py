"""What is written to a cache for an hour has a price of its own, and is counted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make the step."""
    op.add_column("prices", sa.Column("cache_write_1h", sa.BigInteger(), nullable=True))
    counted = sa.Column("cache_write_1h_tokens", sa.BigInteger(), nullable=False, server_default="0")
    op.add_column("usage_events", counted)
