"""Responses that callers may come back to: as they were told, with the items that they were given.

A response that goes on from another names it; so a conversation is a chain, and each of its turns is stored once. How
long and how large the chain is stands in its last row, so that what is too much is refused before it is read.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, func, insert, or_, select, update

from interlace.config import ResponseSettings
from interlace.deposits.shelf import Shelf
from interlace.errors import InvalidRequest, PayloadTooLarge
from interlace.ledger import Write
from interlace.ledger.schema import stored_responses

RUNNING = ("queued", "in_progress")
PAGE = 200  # deleted at once
COUNT_SECONDS = 30.0  # how long a count of a project's bytes is believed
DAY_US = 86_400 * 10**6
LATE_US = 2 * DAY_US  # a response that ran while its project was erased has ended by then

_CUT_OFF = "The server was restarted before the response was complete. Ask again."

_TABLE = stored_responses.c
_COLUMNS = tuple(stored_responses.columns.keys())
_ADD = insert(stored_responses).values({name: bindparam(f"r_{name}") for name in _COLUMNS})
_CHANGE = (
    update(stored_responses)
    .where(_TABLE.id == bindparam("r_id"))
    .values({name: bindparam(f"r_{name}") for name in ("status", "body", "chain_bytes")})
)
_CUT = _CHANGE.where(_TABLE.status.in_(RUNNING))  # what it has become meanwhile stands


@dataclass(frozen=True, slots=True)
class Turn:
    """One stored response: `body` and `input` are JSON; moments are microseconds since 1970."""

    id: str
    project_id: str
    previous_id: str | None
    turns: int
    chain_bytes: int
    status: str
    body: bytes
    input: bytes
    created_at: int
    expires_at: int | None
    runner: str | None = None  # the process that runs it in the background, where there are several

    def added(self) -> Write:
        """The statement that puts it down."""
        return Write(_ADD, {f"r_{name}": getattr(self, name) for name in _COLUMNS})

    def changed(self) -> Write:
        """The statement that puts down what became of it; nothing where it has been deleted."""
        return Write(_CHANGE, {f"r_{name}": getattr(self, name) for name in ("id", "status", "body", "chain_bytes")})


class Responses:
    """All stored responses."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._opened = shelf.now()
        self._sizes: dict[str, tuple[int, float]] = {}  # by project: bytes, and when they were counted

    @property
    def _settings(self) -> ResponseSettings:
        return self._shelf.registry.settings.responses

    def expires_at(self, created_at: int) -> int | None:
        """When a response is deleted that is made at that moment."""
        return created_at + self._settings.days * DAY_US if self._settings.days else None

    def now(self) -> int:
        """Microseconds since 1970."""
        return self._shelf.now()

    def knows_size(self, project_id: str) -> bool:
        """Whether `check_room` can say at once, without the disk."""
        _, counted = self._sizes.get(project_id, (0, -COUNT_SECONDS))
        return self._shelf.registry.clock.monotonic() < counted + COUNT_SECONDS

    def check_room(self, project_id: str) -> None:
        """Raise `PayloadTooLarge` where a project has stored as much as it may, by a count that is not quite new."""
        if not self.knows_size(project_id):
            size = func.coalesce(func.sum(func.length(_TABLE.body) + func.length(_TABLE.input)), 0)
            query = select(size).where(_TABLE.project_id == project_id)
            counted = self._shelf.store.read(lambda connection: connection.execute(query).scalar_one())
            self._sizes[project_id] = int(counted), self._shelf.registry.clock.monotonic()
        if self._sizes[project_id][0] > (most := self._settings.project_bytes):
            raise PayloadTooLarge(
                f"The stored responses of a project are at most {most} bytes in all on this server. Delete some, or "
                "send 'store' as false.",
                param="store",
                code="response_quota_exceeded",
            )

    def put(self, write: Write) -> None:
        """Write one by itself, where there is no usage event to write it with; raises `LedgerUnavailable`."""
        self._shelf.store.write(lambda connection: connection.execute(write.statement, dict(write.values)))

    def find(self, project_id: str, id: str) -> Turn | None:
        """The response of that id, if it is the project's and has not expired."""
        there = select(stored_responses).where(_TABLE.id == id, *self._of(project_id))
        row = self._shelf.store.read(lambda connection: connection.execute(there).one_or_none())
        return None if row is None else Turn(**row._mapping)

    def several(self, project_id: str, ids: Iterable[str]) -> dict[str, Turn]:
        """Those of these responses that are the project's, by id. Raises `InvalidRequest` where they are more, or
        larger together, than what may be taken up again of a conversation."""
        found: dict[str, Turn] = {}
        size = 0
        for id in dict.fromkeys(ids):
            if (turn := self.find(project_id, id)) is None:
                continue
            found[id] = turn
            size += len(turn.body) + len(turn.input)
            if len(found) > self._settings.chain_turns or size > self._settings.chain_bytes:
                raise InvalidRequest(
                    f"The items referred to belong to more than {self._settings.chain_turns} responses, or to more "
                    f"than {self._settings.chain_bytes} bytes of them. Send some of the items themselves.",
                    param="input",
                    code="invalid_value",
                )
        return found

    def chain(self, project_id: str, id: str) -> list[Turn]:
        """The response of that id and all before it, the first one first. Raises `InvalidRequest` where one is missing,
        has not ended well, or where they are too many or too large together."""
        head = select(_TABLE.status, _TABLE.turns, _TABLE.chain_bytes).where(_TABLE.id == id, *self._of(project_id))
        found = self._shelf.store.read(lambda connection: connection.execute(head).one_or_none())
        if found is None:
            raise _not_found(id)
        if found.status not in ("completed", "incomplete"):
            raise _refused(f"Previous response with id '{id}' is {found.status}, so nothing can go on from it.")
        if found.turns >= self._settings.chain_turns or found.chain_bytes > self._settings.chain_bytes:
            raise _refused(
                f"The conversation before this has {found.turns} responses and {found.chain_bytes} bytes; at most "
                f"{self._settings.chain_turns} and {self._settings.chain_bytes} are taken up again. Begin a new one "
                "with a summary of it in 'input'."
            )
        turns = self._shelf.store.read(lambda connection: _ancestors(connection, id, self._of(project_id)))
        if len(turns) < found.turns:
            raise _not_found(turns[0].previous_id or id)
        return turns

    def delete(self, project_id: str, id: str) -> bool:
        """Delete one; whether it was there."""
        gone = delete(stored_responses).where(_TABLE.id == id, *self._of(project_id))
        return bool(self._shelf.store.write(lambda connection: connection.execute(gone).rowcount))

    def runner_of(self, project_id: str, id: str) -> str | None:
        """The process that runs the response of that id, if it is the project's and runs."""
        there = select(_TABLE.runner).where(_TABLE.id == id, _TABLE.status.in_(RUNNING), *self._of(project_id))
        return self._shelf.store.read(lambda connection: connection.execute(there).scalar_one_or_none())

    def fail_unfinished(self, living: Collection[str] = ()) -> int:
        """At a start: those that ran when an earlier process ended have failed, and say so; how many. Not those whose
        runners are `living`."""
        mine = or_(_TABLE.runner.is_(None), _TABLE.runner.not_in(living))
        return self._fail(and_(_TABLE.created_at < self._opened, mine))

    def fail_all_of(self, runner: str) -> int:
        """That process has died: so have those that it ran; how many."""
        return self._fail(_TABLE.runner == runner)

    def fail_before(self, runner: str) -> int:
        """A process has begun in its place: those have failed that the ones before it ran there; how many."""
        place = runner.rpartition("/")[0]
        return self._fail(and_(_TABLE.runner.startswith(f"{place}/", autoescape=True), _TABLE.runner != runner))

    def _fail(self, which: Any) -> int:
        there = select(stored_responses).where(_TABLE.status.in_(RUNNING), which)
        rows = self._shelf.store.read(lambda connection: connection.execute(there).all())
        for row in rows:
            body = {**json.loads(row.body), "status": "failed", "error": {"code": "server_error", "message": _CUT_OFF}}
            turn = Turn(**{**row._mapping, "status": "failed", "body": json.dumps(body).encode()})
            self.put(Write(_CUT, turn.changed().values))
        return len(rows)

    def expire(self) -> int:
        """Delete those whose time is, and what a project left that ran while it was erased; how many."""
        deleted, now = self._delete_all(_TABLE.expires_at <= self.now()), self.now()
        for project in list(self._shelf.registry.directory.projects.values()):
            if project.erased_at is not None and project.erased_at > now - LATE_US:
                deleted += self._delete_all(
                    and_(_TABLE.project_id == project.id, _TABLE.created_at <= project.erased_at)
                )
        return deleted

    def erase(self, project_id: str) -> None:
        """Delete all of a project."""
        self._delete_all(_TABLE.project_id == project_id)

    def _delete_all(self, which: Any) -> int:
        """In small transactions, so that nobody waits for long."""
        some, deleted = select(_TABLE.id).where(which).limit(PAGE), 0
        store = self._shelf.store
        while ids := store.read(lambda connection: connection.scalars(some).all()):
            gone = delete(stored_responses).where(_TABLE.id.in_(ids))
            store.write(lambda connection, gone=gone: connection.execute(gone))  # type: ignore[misc]
            deleted += len(ids)
        return deleted

    def _of(self, project_id: str) -> tuple[Any, ...]:
        return _TABLE.project_id == project_id, or_(_TABLE.expires_at.is_(None), _TABLE.expires_at > self.now())


def _ancestors(connection: Connection, id: str, which: tuple[Any, ...]) -> list[Turn]:
    """One query, whatever the length: each row leads to the one before it."""
    links = select(_TABLE.id, _TABLE.previous_id).where(_TABLE.id == id, *which).cte("links", recursive=True)
    older = stored_responses.alias()
    links = links.union(select(older.c.id, older.c.previous_id).where(older.c.id == links.c.previous_id))
    rows = select(stored_responses).where(_TABLE.id.in_(select(links.c.id)), *which).order_by(_TABLE.turns)
    return [Turn(**row._mapping) for row in connection.execute(rows)]


def _not_found(id: str) -> InvalidRequest:
    return _refused(f"Previous response with id '{id[:200]}' not found.", "previous_response_not_found")


def _refused(message: str, code: str = "invalid_value") -> InvalidRequest:
    return InvalidRequest(message, param="previous_response_id", code=code)
