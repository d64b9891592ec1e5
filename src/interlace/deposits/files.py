"""Files: whose they are, what for, and until when. Each belongs to a project; to all others it is not there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, or_, select

from interlace.deposits.blobs import Partial
from interlace.deposits.shelf import Shelf
from interlace.errors import InvalidRequest, NotFound, PayloadTooLarge
from interlace.ledger.schema import files

DAY_SECONDS = 86_400
BATCH_SECONDS = 30 * DAY_SECONDS  # files of batches go after thirty days, unless told otherwise, as at OpenAI
LEAST_SECONDS, MOST_SECONDS = 3600, 30 * DAY_SECONDS
MOST_NAME = 255  # characters of a file's name
MOST_FILES = 100_000  # of a project

_ID = re.compile(r"file-[0-9a-f]{24}")
_LINES = frozenset({"jsonl"})
_IMAGES = frozenset({"gif", "jpeg", "jpg", "png", "webp"})
_TEXTS = frozenset(
    (
        *(
            "c",
            "cpp",
            "cs",
            "css",
            "csv",
            "doc",
            "docx",
            "go",
            "html",
            "java",
            "js",
            "json",
            "jsonl",
            "md",
            "pdf",
            "php",
        ),
        *("pptx", "py", "rb", "sh", "tar", "tex", "ts", "txt", "xlsx", "xml", "zip"),
    )
)
PURPOSES: dict[str, frozenset[str]] = {
    "batch": _LINES,
    "fine-tune": _LINES,
    "evals": _LINES,
    "vision": _IMAGES,
    "user_data": _TEXTS | _IMAGES,
    "assistants": _TEXTS | _IMAGES,
}
"""What a file may be for, and how its name may end then."""


@dataclass(frozen=True, slots=True)
class NewFile:
    """What a caller says of a file; raises `InvalidRequest` for what cannot be."""

    filename: str
    purpose: str
    seconds: int | None = None  # after which it goes

    def __post_init__(self) -> None:
        if self.purpose not in PURPOSES:
            raise InvalidRequest(
                f"Invalid value: {self.purpose[:50]!r}. Supported values are: {', '.join(PURPOSES)}.",
                param="purpose",
                code="invalid_value",
            )
        if not 0 < len(self.filename) <= MOST_NAME or not self.filename.isprintable():
            raise InvalidRequest(f"The file needs a printable name of at most {MOST_NAME} characters.", param="file")
        endings, ending = PURPOSES[self.purpose], self.filename.rpartition(".")[2].lower()
        if ending not in endings:
            raise InvalidRequest(
                f"Invalid file format for purpose {self.purpose!r}. Must be one of: "
                f"{', '.join('.' + one for one in sorted(endings))}",
                param="file",
                code="invalid_file_format",
            )
        if self.seconds is not None and not LEAST_SECONDS <= self.seconds <= MOST_SECONDS:
            raise InvalidRequest(
                f"A file lives between {LEAST_SECONDS} and {MOST_SECONDS} seconds.",
                param="expires_after.seconds",
                code="invalid_value",
            )


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A file as OpenAI tells it. Moments are whole seconds since 1970."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None


class Files:
    """All files. Calls wait for the disk: they run beside the event loop."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def begin(self) -> Partial:
        """A content to be written."""
        return self._shelf.blobs.begin()

    def add(self, project_id: str, new: NewFile, partial: Partial, most_bytes: int, began: int) -> File:
        """Keep a content that has been written since the moment `began`, as a file of the project; raises
        `PayloadTooLarge` where all of the project's files would be more than `most_bytes`, and `NotFound` where the
        project has been erased meanwhile."""
        digest = partial.finish()
        row = self.row(project_id, new.purpose, new.filename, partial.size, digest, new.seconds)

        def work(connection: Connection) -> None:
            erased_at = self._shelf.registry.directory.projects[project_id].erased_at
            if erased_at is not None and erased_at >= began:
                raise NotFound("The project was erased while the file arrived, so the file was not kept.")
            if _used(connection, project_id) + partial.size > most_bytes:
                raise too_much(most_bytes)
            mine = select(func.count()).where(files.c.project_id == project_id)
            if connection.execute(mine).scalar_one() >= MOST_FILES:
                raise PayloadTooLarge(
                    f"A project has at most {MOST_FILES} files. Delete some first.",
                    param="file",
                    code="file_quota_exceeded",
                )
            connection.execute(insert(files).values(**row))

        with self._shelf.lock:
            self._shelf.blobs.keep(partial, digest)
            try:
                self._shelf.store.write(work)
            except BaseException:
                self._shelf.release([digest])
                raise
        return _file(row)

    def row(
        self, project_id: str, purpose: str, filename: str, size: int, digest: str, seconds: int | None
    ) -> dict[str, Any]:
        """The row of a new file."""
        now = self._shelf.now()
        if seconds is None and purpose in ("batch", "batch_output"):
            seconds = BATCH_SECONDS
        return {
            "id": self._shelf.new_id("file-"),
            "project_id": project_id,
            "purpose": purpose,
            "filename": filename,
            "bytes": size,
            "digest": digest,
            "created_at": now,
            "expires_at": None if seconds is None else now + seconds * 10**6,
        }

    def used(self, project_id: str) -> int:
        """Bytes of all files of a project."""
        return self._shelf.store.read(lambda connection: _used(connection, project_id))

    def get(self, project_id: str, id: str) -> File:
        """One file; raises `NotFound`."""
        return _file(self._row(project_id, id)._mapping)

    def digest(self, project_id: str, id: str) -> tuple[File, str]:
        """One file and the digest of its content; raises `NotFound`."""
        row = self._row(project_id, id)
        return _file(row._mapping), row.digest

    def open(self, project_id: str, id: str) -> tuple[File, BinaryIO]:
        """One file, and its content to be read, which stays readable though the file is deleted meanwhile."""
        with self._shelf.lock:
            row = self._row(project_id, id)
            return _file(row._mapping), self._shelf.blobs.path(row.digest).open("rb")

    def path(self, digest: str) -> Path:
        """Where a content lies."""
        return self._shelf.blobs.path(digest)

    def list(
        self, project_id: str, *, after: str | None, limit: int, newest_first: bool, purpose: str | None
    ) -> tuple[Sequence[File], bool]:
        """Files of a project in the order of time, beyond `after`, and whether there are more."""
        order = files.c.id.desc() if newest_first else files.c.id
        query = select(files).where(*_of(project_id, self._shelf.now())).order_by(order).limit(limit + 1)
        if after is not None:
            query = query.where(files.c.id < after if newest_first else files.c.id > after)
        if purpose is not None:
            query = query.where(files.c.purpose == purpose)
        rows = self._shelf.store.read(lambda connection: connection.execute(query).all())
        return [_file(row._mapping) for row in rows[:limit]], len(rows) > limit

    def delete(self, project_id: str, id: str) -> None:
        """Delete a file, and its content with the last file or running batch that has it; raises `NotFound`."""
        row = self._row(project_id, id)
        if not self._delete(files.c.id == row.id):
            raise _missing(id)

    def expire(self) -> int:
        """Delete the files whose time is over; how many."""
        return self._delete(files.c.expires_at <= self._shelf.now())

    def erase(self, project_id: str) -> int:
        """Delete all files of a project; how many."""
        return self._delete(files.c.project_id == project_id)

    def _delete(self, which: ColumnElement[bool]) -> int:
        def work(connection: Connection) -> list[str]:
            digests = list(connection.scalars(select(files.c.digest).where(which)))
            connection.execute(delete(files).where(which))
            return digests

        digests = self._shelf.store.write(work)
        self._shelf.release(digests)
        return len(digests)

    def _row(self, project_id: str, id: str) -> Row[Any]:
        if not _ID.fullmatch(id):
            raise _missing(id)
        query = select(files).where(files.c.id == id, *_of(project_id, self._shelf.now()))
        row = self._shelf.store.read(lambda connection: connection.execute(query).first())
        if row is None:
            raise _missing(id)
        return row


def too_much(most_bytes: int) -> PayloadTooLarge:
    """The project's files would be more than it may have."""
    return PayloadTooLarge(
        f"The files of a project are at most {most_bytes} bytes in all on this server. Delete some first.",
        param="file",
        code="file_quota_exceeded",
    )


def _of(project_id: str, now: int) -> tuple[ColumnElement[bool], ...]:
    return files.c.project_id == project_id, or_(files.c.expires_at.is_(None), files.c.expires_at > now)


def _used(connection: Connection, project_id: str) -> int:
    query = select(func.coalesce(func.sum(files.c.bytes), 0)).where(files.c.project_id == project_id)
    return int(connection.execute(query).scalar_one())


def _missing(id: str) -> NotFound:
    return NotFound(f"No such File object: {id[:100]}", param="id")


def _file(row: Any) -> File:
    expires = row["expires_at"]
    return File(
        id=row["id"],
        bytes=row["bytes"],
        created_at=row["created_at"] // 10**6,
        expires_at=None if expires is None else expires // 10**6,
        filename=row["filename"],
        purpose=row["purpose"],
    )
