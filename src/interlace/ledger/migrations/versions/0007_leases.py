"""Several processes share budgets: each is a worker, and holds leases on slices of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Make the step."""
    op.create_table(
        "workers",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("machine", sa.String(64), nullable=False),
        sa.Column("boot", sa.String(64), nullable=False),
        sa.Column("pid", sa.BigInteger, nullable=False),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("closed_at", sa.BigInteger),
        sa.Column("why", sa.String(200)),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )
    op.create_table(
        "leases",
        sa.Column("worker_id", sa.String(64), nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("scope", sa.String(8), nullable=False),
        sa.Column("scope_id", sa.String(32), nullable=False),
        sa.Column("month", sa.String(7), nullable=False),
        sa.Column("nanos", sa.BigInteger, nullable=False),
        sa.Column("granted_nanos", sa.BigInteger, nullable=False),
        sa.Column("returned_nanos", sa.BigInteger, nullable=False),
        sa.Column("wanted_nanos", sa.BigInteger, nullable=False),
        sa.Column("wanted_since", sa.BigInteger),
        sa.Column("renewed_at", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name=op.f("fk_leases_worker_id")),
        sa.PrimaryKeyConstraint("worker_id", "epoch", "scope", "scope_id", "month", name=op.f("pk_leases")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_leases_scope_scope_id_month"), "leases", ["scope", "scope_id", "month"])
    op.create_index(op.f("ix_leases_wanted_since"), "leases", ["wanted_since"])
