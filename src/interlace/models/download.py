"""One file over HTTP: resumed where an earlier try stopped, bounded in size, verified before it counts."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import httpx

from interlace.models.files import CHUNK_BYTES, sha256_of
from interlace.models.progress import Progress
from interlace.models.room import check_disk
from interlace.models.space import SourceUnavailable, Unfinished

TRIES = 3  # of one file within one pull; each goes on where the one before stopped
TIMEOUT = httpx.Timeout(30.0, connect=5.0)


@dataclass(frozen=True, slots=True)
class Remote:
    """A file to fetch. `sha256` or `git_sha1` is what its source states of it; `bytes` None means not stated."""

    name: str
    url: str
    bytes: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class DigestMismatch(Unfinished):
    """A file came whole but is not the one its source states; it is discarded, the others are good."""


def fetch(remote: Remote, target: Path, parts: Path, progress: Progress) -> None:
    """Bring `remote` to `target`, through a part file in `parts` that survives a kill and is resumed.

    Raises SourceUnavailable when it cannot be had, DigestMismatch when it is the wrong file.
    """
    if target.is_file() and _matches(target, remote):
        progress.say(f"{remote.name} is there already.")
        return
    identity = f"{remote.url}\n{remote.sha256}{remote.git_sha1}".encode()
    part = parts / f"{hashlib.sha256(identity).hexdigest()[:24]}.part"
    resumed = part.is_file() and part.stat().st_size > 0
    _fetch_part(remote, part, progress)
    if resumed and not _matches(part, remote):
        # The old half may have belonged to another edition of the file: once more, from the start.
        part.unlink()
        _fetch_part(remote, part, progress)
    if not _matches(part, remote):
        part.unlink()
        raise DigestMismatch(f"{remote.name} is not the file its source states: the digests differ. It was discarded.")
    target.parent.mkdir(parents=True, exist_ok=True)
    part.replace(target)


def _matches(file: Path, remote: Remote) -> bool:
    if remote.bytes is not None and file.stat().st_size != remote.bytes:
        return False
    if remote.sha256 is not None:
        return sha256_of(file) == remote.sha256
    return remote.git_sha1 is None or _git_sha1(file) == remote.git_sha1


def _git_sha1(file: Path) -> str:
    """The id git gives a file's content, which is what the Hub states of small files."""
    digest = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _fetch_part(remote: Remote, part: Path, progress: Progress) -> None:
    if remote.url.startswith("file:"):
        _copy_local(remote, part)
        return
    with httpx.Client(follow_redirects=True, timeout=TIMEOUT, headers={"Accept-Encoding": "identity"}) as client:
        for number in range(1, TRIES + 1):
            before = _size(part)
            try:
                _receive(client, remote, part, progress)
                return
            except httpx.TransportError as error:
                # A connection that never began will not begin by asking again; one that broke off is worth a resume.
                if number == TRIES or _size(part) == before:
                    raise SourceUnavailable(f"{remote.name} cannot be downloaded: {_reason(error)}.") from error
                progress.say(f"The connection broke ({_reason(error)}); going on at byte {_size(part)}.")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _copy_local(remote: Remote, part: Path) -> None:
    """A package index may be a folder on this machine."""
    origin = Path(url2pathname(unquote(urlsplit(remote.url).path)))
    if not origin.is_file():
        raise SourceUnavailable(f"{remote.name} cannot be read: {origin} is not there.")
    check_disk(part.parent, origin.stat().st_size)
    shutil.copyfile(origin, part)


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _receive(client: httpx.Client, remote: Remote, part: Path, progress: Progress) -> None:
    start = _size(part)
    if remote.bytes is not None and start >= remote.bytes:
        return  # whole already (or too long: the digest will say so)
    headers = dict(remote.headers) | ({"Range": f"bytes={start}-"} if start else {})
    with client.stream("GET", remote.url, headers=headers) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            return  # nothing is left to send
        if response.is_error:
            raise SourceUnavailable(f"{remote.name} cannot be downloaded: the server says {response.status_code}.")
        if not _continues(response, start):
            start = 0
        total = _total(response, start, remote)
        check_disk(part.parent, max((total or 0) - start, 0))
        with part.open("ab" if start else "wb") as file, _bar(progress, remote.name, total, start):
            _write(response, file, remote, start, total, progress)


def _continues(response: httpx.Response, start: int) -> bool:
    """Whether the server goes on at `start`; one without ranges sends the whole file again."""
    where = response.headers.get("Content-Range", "")
    return start > 0 and response.status_code == httpx.codes.PARTIAL_CONTENT and where.startswith(f"bytes {start}-")


def _total(response: httpx.Response, start: int, remote: Remote) -> int | None:
    if remote.bytes is not None:
        return remote.bytes
    length = response.headers.get("Content-Length", "")
    return start + int(length) if length.isdigit() else None


@contextmanager
def _bar(progress: Progress, name: str, total: int | None, start: int) -> Iterator[None]:
    progress.begin(name, total, start)
    try:
        yield
    finally:
        progress.end()


def _write(
    response: httpx.Response, file: IO[bytes], remote: Remote, start: int, total: int | None, progress: Progress
) -> None:
    """Stream the body; stops a server that sends more than was stated, or more than the disk can take."""
    done, checked = start, start
    for chunk in response.iter_bytes():  # as it arrives: what is written is what a killed pull keeps
        done += len(chunk)
        if total is not None and done > total:
            raise DigestMismatch(f"{remote.name} is longer than the {total} bytes its source states.")
        if total is None and done - checked > 64 * CHUNK_BYTES:
            check_disk(Path(file.name).parent, 64 * CHUNK_BYTES)
            checked = done
        file.write(chunk)
        file.flush()
        progress.advance(len(chunk))
