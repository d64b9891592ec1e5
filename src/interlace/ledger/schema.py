"""The tables, declared. Migrations must arrive at exactly this; a test compares.

Everything that tells who, what and how much is written once and stays. Rows are closed by a moment in a `*_at` column
(microseconds since 1970), never deleted: usage events name them. What callers leave here (files, batches) is theirs,
and deleted when they say so; leases end with the worker that holds them.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

organisations = Table(
    "organisations",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(128), nullable=False, unique=True),
    Column("budget_nanos", BigInteger),  # a calendar month's; NULL: no bound, here and in every table
    Column("created_at", BigInteger, nullable=False),
)

projects = Table(
    "projects",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("org_id", ForeignKey("organisations.id"), nullable=False),
    Column("name", String(128), nullable=False),
    Column("budget_nanos", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("erased_at", BigInteger),
    UniqueConstraint("org_id", "name"),
)

plans = Table(
    "plans",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(128), nullable=False, unique=True),
    Column("rpm", BigInteger),
    Column("tpm", BigInteger),
    Column("concurrency", BigInteger),
    Column("budget_nanos", BigInteger),
    Column("priority", Integer, nullable=False),
    Column("default_max_tokens", BigInteger),
    Column("largest_max_tokens", BigInteger),
    Column("models", String),  # JSON list; NULL: every model
    Column("source", String(8), nullable=False),  # "file": interlace.yaml's; "db"
    Column("created_at", BigInteger, nullable=False),
    Column("retired_at", BigInteger),  # no longer in the file
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("plan_id", ForeignKey("plans.id")),
    Column("name", String(128), nullable=False),
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("hint", String(16), nullable=False),  # the last characters of the key, to tell keys apart
    Column("scopes", String, nullable=False),  # JSON list
    Column("models", String),  # JSON list; NULL: whatever the plan allows
    Column("budget_nanos", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
)

prices = Table(
    "prices",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("model", String(128), nullable=False),
    Column("since", BigInteger, nullable=False),
    *(Column(kind, BigInteger) for kind in ("prompt", "cached", "cache_write", "completion", "reasoning", "embedding")),
    Column("cache_write_1h", BigInteger),
    Column("request", BigInteger, nullable=False),
    Column("batch_percent", Integer, nullable=False),
    Column("source", String(8), nullable=False),
    Column("recorded_at", BigInteger, nullable=False),
    Column("retired_at", BigInteger),
)

usage_events = Table(
    "usage_events",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("org_id", String(32), nullable=False),
    Column("project_id", String(32), nullable=False),
    Column("key_id", String(32), nullable=False),
    Column("model", String(128), nullable=False),
    Column("engine", String(16), nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("price_id", Integer, nullable=False),
    *(
        Column(f"{kind}_tokens", BigInteger, nullable=False)
        for kind in ("prompt", "cached", "cache_write", "completion", "reasoning", "embedding")
    ),
    Column("cache_write_1h_tokens", BigInteger, nullable=False, server_default="0"),
    Column("cost_nanos", BigInteger, nullable=False),
    Column("overrun_nanos", BigInteger, nullable=False),
    Column("estimated", Boolean, nullable=False),
    Column("disputed", Boolean, nullable=False, server_default=false()),
    Column("batch", Boolean, nullable=False),
    Column("day", String(10), nullable=False),
    Column("started_us", BigInteger, nullable=False),
    Column("route", String(128)),  # the route it was asked by; NULL: by the model's own name
    Column("attempts", String),  # JSON list of `Attempt`; NULL: just the one that the row itself tells
    # Details: emptied by retention and erasure, and no sum is made of them.
    Column("endpoint", String(32)),
    Column("latency_us", BigInteger),
    Column("first_token_us", BigInteger),
    Column("attempt_us", String),  # JSON list: how long each attempt took
    sqlite_with_rowid=False,  # ids are in the order of time: new rows come at the end
)

event_tags = Table(
    "event_tags",
    metadata,
    Column("event_id", String(32), primary_key=True),
    Column("tag", String(64), primary_key=True),
    sqlite_with_rowid=False,
)

balances = Table(
    "balances",
    metadata,
    Column("scope", String(8), primary_key=True),  # "org", "project", "key"
    Column("scope_id", String(32), primary_key=True),
    Column("month", String(7), primary_key=True),
    Column("spent_nanos", BigInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# --- several processes -------------------------------------------------------------------------------------------

workers = Table(
    "workers",
    metadata,
    Column("id", String(64), primary_key=True),  # a place for one process; whoever holds its lock file sits there
    Column("epoch", BigInteger, nullable=False),  # how often somebody has sat down there; older ones are fenced off
    Column("machine", String(64), nullable=False),
    Column("boot", String(64), nullable=False),  # of the machine's start: no process outlives it
    Column("pid", BigInteger, nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("closed_at", BigInteger),
    Column("why", String(200)),  # it was closed
)

leases = Table(
    "leases",
    metadata,
    Column("worker_id", ForeignKey("workers.id"), primary_key=True),
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    Column("scope", String(8), primary_key=True),
    Column("scope_id", String(32), primary_key=True),
    Column("month", String(7), primary_key=True),
    Column("nanos", BigInteger, nullable=False),  # granted, and neither returned nor in `balances` as spent
    Column("granted_nanos", BigInteger, nullable=False),  # in all, ever
    Column("returned_nanos", BigInteger, nullable=False),  # in all, ever
    Column("wanted_nanos", BigInteger, nullable=False),  # what it lacks for a request that waits
    Column("wanted_since", BigInteger),  # since when that request has waited; NULL: none does
    Column("renewed_at", BigInteger, nullable=False),  # when it last said so
    Index(None, "scope", "scope_id", "month"),
    Index(None, "wanted_since"),
    sqlite_with_rowid=False,
)

# --- several machines --------------------------------------------------------------------------------------------

changes = Table(
    "changes",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("kind", String(32), nullable=False),  # the table that the entry is in, or `all`
    Column("entry", String(64), nullable=False),
)

facts = Table(
    "facts",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", String(128), nullable=False),
)

# --- what callers leave here -------------------------------------------------------------------------------------

files = Table(
    "files",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("purpose", String(24), nullable=False),
    Column("filename", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False),  # SHA-256 of the content, under which it lies on disk
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Index(None, "project_id", "id"),
    Index(None, "digest"),
)

batches = Table(
    "batches",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("key_id", ForeignKey("api_keys.id"), nullable=False),  # whose plan and budgets its lines use
    Column("endpoint", String(64), nullable=False),
    Column("completion_window", String(8), nullable=False),
    Column("input_file_id", String(40), nullable=False),
    Column("input_digest", String(64), nullable=False),  # the content stays while the batch runs, whoever deletes files
    Column("metadata", Text),  # JSON object, as it was given
    Column("output_seconds", Integer),  # how long its output files live; NULL: the usual time
    Column("status", String(16), nullable=False),
    Column("model", String(128)),
    Column("errors", Text),  # JSON list: why it could not run
    Column("total", Integer, nullable=False),
    Column("completed", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    *(Column(f"{kind}_tokens", BigInteger, nullable=False) for kind in ("prompt", "cached", "completion", "reasoning")),
    Column("output_file_id", String(40)),
    Column("error_file_id", String(40)),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    *(
        Column(f"{moment}_at", BigInteger)
        for moment in ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    ),
    Index(None, "project_id", "id"),
    Index(None, "status"),
)

batch_results = Table(
    "batch_results",
    metadata,
    Column("batch_id", String(40), primary_key=True),
    Column("line", Integer, primary_key=True),
    Column("failed", Boolean, nullable=False),
    Column("row", LargeBinary, nullable=False),  # the line of the output or error file, until that is written
    sqlite_with_rowid=False,
)

stored_responses = Table(
    "stored_responses",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("previous_id", String(40)),  # the response it goes on from, which may be gone
    Column("turns", Integer, nullable=False),  # how many responses it and those before it are
    Column("chain_bytes", BigInteger, nullable=False),  # how large all of them are
    Column("status", String(16), nullable=False),
    Column("body", LargeBinary, nullable=False),  # JSON, as it is told, and sealed thoughts
    Column("input", LargeBinary, nullable=False),  # JSON list: the items it was given, as guards let them pass
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("runner", String(96)),  # worker and epoch where it runs in the background; null: the only process
    Index(None, "project_id", "created_at"),
    Index(None, "status"),
    Index(None, "expires_at"),
)
