"""What Alembic runs to find the database: the connection that `migrate` was given, in its transaction."""

from __future__ import annotations

from alembic import context

from interlace.ledger.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
