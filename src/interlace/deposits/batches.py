"""Batches: requests left in a file, to be answered when there is room, and what became of them so far.

    validating → in_progress → finalizing → completed
         ↓            ↓  ↘ cancelling → cancelled
       failed      expired, failed

The result of a line is a row that is written in the transaction of the line's usage event: an answer is billed if and
only if it is there. Rows become the output files at the end; until then a restart finds what is done by reading them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from interlace.deposits.batch_lines import Line, Problem, Wanted, check_lines, read_lines
from interlace.deposits.blobs import Partial
from interlace.deposits.files import Files
from interlace.deposits.shelf import OPEN, Shelf
from interlace.errors import Conflict, InvalidRequest, NotFound, Overloaded
from interlace.ledger import Write
from interlace.ledger.schema import batch_results, batches, files, usage_events

WINDOW_SECONDS = 86_400
MOST_OPEN = 100  # batches of one project that are not over
PAGE = 500  # results read, or deleted, at once
_ID = re.compile(r"batch_[0-9a-f]{17}")
_KINDS = ("prompt", "cached", "completion", "reasoning")
_LINE_DIGITS, _ATTEMPT_DIGITS = 5, 2  # hexadecimal, of the ids of its requests

_ADD_RESULT = insert(batch_results).values(
    {name: bindparam(f"r_{name}") for name in ("batch_id", "line", "failed", "row")}
)
_COUNT = (
    update(batches)
    .where(batches.c.id == bindparam("b_id"))
    .values(
        {
            name: batches.c[name] + bindparam(f"b_{name}")
            for name in ("completed", "failed", *(f"{kind}_tokens" for kind in _KINDS))
        }
    )
)


@dataclass(frozen=True, slots=True)
class NewBatch:
    """What a caller asks for; `seconds`: how long its output files live."""

    endpoint: str
    completion_window: str
    input_file_id: str
    metadata: dict[str, str] | None = None
    seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it stands; the columns that its runner needs. Moments are microseconds since 1970."""

    id: str
    project_id: str
    key_id: str
    endpoint: str
    input_digest: str
    status: str
    model: str | None
    output_seconds: int | None
    expires_at: int


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one line: a row of the output file, or of the error file, and the tokens it used."""

    batch_id: str
    line: int
    row: bytes
    failed: bool
    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0

    def writes(self) -> tuple[Write, ...]:
        """The statements that put it down and count it. A second result for a line cannot be put down."""
        added = {"r_batch_id": self.batch_id, "r_line": self.line, "r_failed": self.failed, "r_row": self.row}
        counted = {"b_id": self.batch_id, "b_completed": int(not self.failed), "b_failed": int(self.failed)}
        counted |= {f"b_{kind}_tokens": getattr(self, kind) for kind in _KINDS}
        return Write(_ADD_RESULT, added), Write(_COUNT, counted)


# --- as OpenAI tells it ------------------------------------------------------------------------------------------


class RequestCounts(msgspec.Struct, frozen=True):
    """How far it is."""

    total: int
    completed: int
    failed: int


class InputDetails(msgspec.Struct, frozen=True):
    """Parts of the input tokens."""

    cached_tokens: int


class OutputDetails(msgspec.Struct, frozen=True):
    """Parts of the output tokens."""

    reasoning_tokens: int


class BatchUsage(msgspec.Struct, frozen=True):
    """Tokens of all its answers so far."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Problems(msgspec.Struct, frozen=True):
    """Why it could not run."""

    data: list[Problem]
    object: Literal["list"] = "list"


class BatchView(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as OpenAI tells it. Moments are whole seconds since 1970."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: Problems | None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None


_MOMENTS = tuple(name for name in BatchView.__struct_fields__ if name.endswith("_at"))


# --- the batches -------------------------------------------------------------------------------------------------


class Batches:
    """All batches. Calls wait for the disk: they run beside the event loop."""

    def __init__(self, shelf: Shelf, kept: Files) -> None:
        self._shelf = shelf
        self._files = kept

    # --- for callers ---------------------------------------------------------------------------------------------

    def create(self, project_id: str, key_id: str, new: NewBatch) -> BatchView:
        """Take on a batch, of a file of the same project; raises `InvalidRequest` and `Overloaded`."""
        with self._shelf.lock:
            try:
                file, digest = self._files.digest(project_id, new.input_file_id)
            except NotFound as error:
                raise InvalidRequest(error.message, param="input_file_id", code="file_not_found") from None
            if file.purpose != "batch":
                raise InvalidRequest(
                    f"The file {file.id} was uploaded with purpose {file.purpose!r}; a batch needs one with 'batch'.",
                    param="input_file_id",
                    code="invalid_file_purpose",
                )
            now = self._shelf.now()
            row: dict[str, Any] = {
                "id": self._shelf.new_id("batch_", 24 - 12 - _LINE_DIGITS - _ATTEMPT_DIGITS),
                "project_id": project_id,
                "key_id": key_id,
                "endpoint": new.endpoint,
                "completion_window": new.completion_window,
                "input_file_id": file.id,
                "input_digest": digest,
                "metadata": None if new.metadata is None else json.dumps(new.metadata),
                "output_seconds": new.seconds,
                "status": "validating",
                **dict.fromkeys(("total", "completed", "failed", *(f"{kind}_tokens" for kind in _KINDS)), 0),
                "created_at": now,
                "expires_at": now + WINDOW_SECONDS * 10**6,
            }

            def work(connection: Connection) -> Row[Any]:
                running = select(func.count()).where(batches.c.project_id == project_id, batches.c.status.in_(OPEN))
                if connection.execute(running).scalar_one() >= MOST_OPEN:
                    raise Overloaded(f"A project has at most {MOST_OPEN} batches at a time.", retry_after_seconds=60)
                connection.execute(insert(batches).values(**row))
                return connection.execute(select(batches).where(batches.c.id == row["id"])).one()

            return _view(self._shelf.store.write(work))

    def get(self, project_id: str, id: str) -> BatchView:
        """One batch; raises `NotFound`."""
        return _view(self._row(id, project_id))

    def list(self, project_id: str, *, after: str | None, limit: int) -> tuple[Sequence[BatchView], bool]:
        """Batches of a project, the newest first, older than `after`, and whether there are more."""
        query = select(batches).where(batches.c.project_id == project_id)
        if after is not None:
            query = query.where(batches.c.id < after)
        query = query.order_by(batches.c.id.desc()).limit(limit + 1)
        rows = self._shelf.store.read(lambda connection: connection.execute(query).all())
        return [_view(row) for row in rows[:limit]], len(rows) > limit

    def cancel(self, project_id: str, id: str) -> BatchView:
        """Ask that nothing more of it is begun; raises `NotFound`, or `Conflict` where it is over."""
        self._row(id, project_id)

        def work(connection: Connection) -> Row[Any]:
            stoppable = batches.c.id == id, batches.c.status.in_(("validating", "in_progress"))
            values = {"status": "cancelling", "cancelling_at": self._shelf.now()}
            connection.execute(update(batches).where(*stoppable).values(**values))
            return connection.execute(select(batches).where(batches.c.id == id)).one()

        row = self._shelf.store.write(work)
        if row.status != "cancelling":
            raise Conflict(f"Cannot cancel a batch with status '{row.status}'.", code="batch_not_cancellable")
        return _view(row)

    def erase(self, project_id: str) -> int:
        """Delete all batches of a project and what was answered of them; how many."""

        def work(connection: Connection) -> list[str]:
            which = batches.c.project_id == project_id
            ids = select(batches.c.id).where(which)
            connection.execute(delete(batch_results).where(batch_results.c.batch_id.in_(ids)))
            digests = list(connection.scalars(select(batches.c.input_digest).where(which)))
            connection.execute(delete(batches).where(which))
            return digests

        digests = self._shelf.store.write(work)
        self._shelf.release(digests)
        return len(digests)

    # --- for the runner ------------------------------------------------------------------------------------------

    def open(self) -> Sequence[Batch]:
        """The batches that are not over, the oldest first."""
        query = select(*_COLUMNS).where(batches.c.status.in_(OPEN)).order_by(batches.c.id)
        rows = self._shelf.store.read(lambda connection: connection.execute(query).all())
        return [Batch(*row) for row in rows]

    def check(self, batch: Batch, most_line_bytes: int) -> Wanted:
        """Read its input through."""
        return check_lines(self._path(batch), batch.endpoint, most_line_bytes)

    def lines(self, batch: Batch) -> Iterator[Line]:
        """The requests of a batch that was found good."""
        return read_lines(self._path(batch))

    def begin(self, batch: Batch, wanted: Wanted) -> None:
        """It was found good."""
        self._set(batch, ("validating", "cancelling"), total=wanted.total, model=wanted.model)
        self._set(batch, ("validating",), status="in_progress", in_progress_at=self._shelf.now())

    def refuse(self, batch: Batch, problems: Sequence[Problem]) -> None:
        """It was found wrong: nothing of it runs."""
        values = {"status": "failed", "failed_at": self._shelf.now(), "errors": _json(problems)}
        self._set(batch, ("validating", "cancelling"), **values)
        self._shelf.release([batch.input_digest])

    def done(self, batch: Batch) -> set[int]:
        """The lines that have a result."""
        query = select(batch_results.c.line).where(batch_results.c.batch_id == batch.id)
        return set(self._shelf.store.read(lambda connection: connection.scalars(query).all()))

    def attempts(self, batch: Batch) -> dict[int, int]:
        """How many requests of each line left a usage event so far, as far as any did: the next has a fresh id."""
        first, last = request_id(batch, 0, 0), request_id(batch, 16**_LINE_DIGITS - 1, 16**_ATTEMPT_DIGITS - 1)
        query = select(usage_events.c.id).where(usage_events.c.id.between(first, last))
        found: dict[int, int] = {}
        for id in self._shelf.store.read(lambda connection: connection.scalars(query).all()):
            line = int(id[-_LINE_DIGITS - _ATTEMPT_DIGITS : -_ATTEMPT_DIGITS], 16)
            found[line] = max(found.get(line, 0), int(id[-_ATTEMPT_DIGITS:], 16) + 1)
        return found

    def put(self, result: Result) -> None:
        """Write down a result that has no usage event."""

        def work(connection: Connection) -> None:
            for write in result.writes():
                connection.execute(write.statement, dict(write.values))

        self._shelf.store.write(work)

    def finish(self, batch: Batch, status: str, rest: Problem, problems: Sequence[Problem] = ()) -> None:
        """The end of it: every line's result goes into one of two files, in the order of the input. Lines without one
        get `rest` as their error."""
        if status == "completed":
            self._set(batch, ("in_progress",), status="finalizing", finalizing_at=self._shelf.now())
        with ExitStack() as stack:
            good, bad = (stack.enter_context(self._shelf.blobs.begin()) for _ in range(2))
            failed = self._write_out(batch, rest, good, bad)
            values: dict[str, Any] = {"status": status, f"{status}_at": self._shelf.now(), "failed": failed}
            values |= {"errors": _json(problems) if problems else None}
            self._keep_output(batch, values, good, bad)
        self._shelf.release([batch.input_digest])
        self.forget_results()

    def forget_results(self) -> None:
        """Delete the results of batches that are over: they lie in their output files."""
        still = select(batches.c.id).where(batches.c.status.in_(OPEN))
        query = select(batch_results.c.batch_id, batch_results.c.line).where(batch_results.c.batch_id.not_in(still))
        while rows := self._shelf.store.read(lambda connection: connection.execute(query.limit(PAGE)).all()):
            self._shelf.store.write(lambda connection, rows=rows: _forget(connection, rows))  # type: ignore[misc]

    def _write_out(self, batch: Batch, rest: Problem, good: Partial, bad: Partial) -> int:
        """How many lines failed."""
        results = self._results(batch)
        result, failed = next(results, None), 0
        for line in self.lines(batch):
            while result is not None and result.line < line.number:
                result = next(results, None)
            if result is None or result.line != line.number:
                bad.write([_unanswered(batch, line, rest)])
                failed += 1
            else:
                (bad if result.failed else good).write([result.row, b"\n"])
                failed += result.failed
        return failed

    def _keep_output(self, batch: Batch, values: dict[str, Any], good: Partial, bad: Partial) -> None:
        rows, kept = [], []
        for name, partial in (("output", good), ("error", bad)):
            if partial.size:
                digest = partial.finish()
                filename, seconds = f"{batch.id}_{name}.jsonl", batch.output_seconds
                row = self._files.row(batch.project_id, "batch_output", filename, partial.size, digest, seconds)
                rows.append(row)
                kept.append((partial, digest))
                values[f"{name}_file_id"] = row["id"]

        def work(connection: Connection) -> None:
            if connection.execute(update(batches).where(batches.c.id == batch.id).values(**values)).rowcount and rows:
                connection.execute(insert(files), rows)

        with self._shelf.lock:
            for partial, digest in kept:
                self._shelf.blobs.keep(partial, digest)
            self._shelf.store.write(work)
            self._shelf.release([digest for _, digest in kept])  # of a batch that was erased meanwhile

    def _results(self, batch: Batch) -> Iterator[Row[Any]]:
        table, last = batch_results, -1
        while True:
            query = select(table.c.line, table.c.failed, table.c.row).where(
                table.c.batch_id == batch.id, table.c.line > last
            )
            query = query.order_by(table.c.line).limit(PAGE)
            rows = self._shelf.store.read(lambda connection, q=query: connection.execute(q).all())  # type: ignore[misc]
            if not rows:
                return
            yield from rows
            last = rows[-1].line

    def _path(self, batch: Batch) -> Path:
        return self._files.path(batch.input_digest)

    def _set(self, batch: Batch, before: Iterable[str], **values: Any) -> None:
        """Change a batch that has one of these statuses; another stays as it is."""
        statement = update(batches).where(batches.c.id == batch.id, batches.c.status.in_(before)).values(**values)
        self._shelf.store.write(lambda connection: connection.execute(statement))

    def _row(self, id: str, project_id: str) -> Row[Any]:
        query = select(batches).where(batches.c.id == id, batches.c.project_id == project_id)
        known = _ID.fullmatch(id)
        row = self._shelf.store.read(lambda connection: connection.execute(query).first()) if known else None
        if row is None:
            raise NotFound(f"No batch found with id '{id[:100]}'.", param="batch_id")
        return row


_COLUMNS = [batches.c[name] for name in Batch.__dataclass_fields__]


def request_id(batch: Batch, line: int, attempt: int) -> str:
    """The id of the usage event of one attempt at a line: the same after a restart, so that it is there at most once,
    and of the same form as those of other requests."""
    assert attempt < 16**_ATTEMPT_DIGITS
    return f"{batch.id.removeprefix('batch_')}{line:0{_LINE_DIGITS}x}{attempt:0{_ATTEMPT_DIGITS}x}"


def output_row(id: str, custom_id: str, status: int, body: bytes) -> bytes:
    """A row of an output or error file: what the endpoint answered."""
    response = {"status_code": status, "request_id": f"req_{id}", "body": msgspec.Raw(body)}
    return msgspec.json.encode({"id": f"batch_req_{id}", "custom_id": custom_id, "response": response, "error": None})


def _unanswered(batch: Batch, line: Line, why: Problem) -> bytes:
    """A row of an error file for a line that no endpoint answered."""
    error = {"code": why.code, "message": why.message}
    id = f"batch_req_{request_id(batch, line.number, 0)}"
    row = {"id": id, "custom_id": line.custom_id, "response": None, "error": error}
    return msgspec.json.encode(row) + b"\n"


def _forget(connection: Connection, rows: Sequence[Row[Any]]) -> None:
    for batch_id in {row.batch_id for row in rows}:
        lines = [row.line for row in rows if row.batch_id == batch_id]
        which = batch_results.c.batch_id == batch_id, batch_results.c.line.in_(lines)
        connection.execute(delete(batch_results).where(*which))


def _json(problems: Sequence[Problem]) -> str:
    return msgspec.json.encode(problems).decode()


def _view(row: Row[Any]) -> BatchView:
    found = row._mapping
    moments = {name: None if found[name] is None else found[name] // 10**6 for name in _MOMENTS}
    errors = None if row.errors is None else Problems(msgspec.json.decode(row.errors, type=list[Problem]))
    return BatchView(
        id=row.id,
        endpoint=row.endpoint,
        model=row.model,
        errors=errors,
        input_file_id=row.input_file_id,
        completion_window=row.completion_window,
        status=row.status,
        output_file_id=row.output_file_id,
        error_file_id=row.error_file_id,
        request_counts=RequestCounts(row.total, row.completed, row.failed),
        usage=BatchUsage(
            input_tokens=row.prompt_tokens,
            input_tokens_details=InputDetails(row.cached_tokens),
            output_tokens=row.completion_tokens,
            output_tokens_details=OutputDetails(row.reasoning_tokens),
            total_tokens=row.prompt_tokens + row.completion_tokens,
        ),
        metadata=None if row.metadata is None else json.loads(row.metadata),
        **moments,  # type: ignore[arg-type] # only moments
    )
