"""Adapters that were added by command: copies of their two files in the home folder, each named by its content.

    adapters/added.json            which are served, by which names, and whose they are
    adapters/sha256-DIGEST/        the files of one, with the manifest of its making; nothing in it ever changes

A copy that no entry names any more may still be read by requests that have begun, so only a start removes it.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from interlace.errors import CheckpointError, ConfigError
from interlace.models.adapter_config import MAX_CONFIG_BYTES, MAX_HEADER_BYTES
from interlace.models.adapter_folder import CONFIG_FILE, WEIGHTS_FILE, opened
from interlace.models.added_list import change_list
from interlace.models.lock import locked

MANIFEST_FILE = "manifest.json"

_DIGEST = re.compile(r"[0-9a-f]{64}")
_PIECE = 1 << 20
_UNCLAIMED_SECONDS = 3600.0  # how old a copy must be that a start removes: a younger one may be on its way to an entry


class Added(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An adapter that is served: over which model, by which name, whose ("": everybody's), and which copy."""

    model: str
    name: str
    owner: str
    digest: str


_decoder = msgspec.json.Decoder(tuple[Added, ...])


def copy_adapter(folder: Path, home: Path, most_bytes: int) -> tuple[str, bool]:
    """Copy an adapter's two files into the store, and its manifest where it has one; the digest of the copy, and
    whether it is a new one. Raises `CheckpointError` for files that are none, links, or larger than `most_bytes` of
    numbers can be, before they are copied."""
    partial = _store(home) / f".partial-{secrets.token_hex(8)}"
    try:
        partial.mkdir(mode=0o700, parents=True)
        most_of_file = most_bytes + MAX_HEADER_BYTES  # the engine counts the numbers alone
        for name, most in ((CONFIG_FILE, MAX_CONFIG_BYTES), (WEIGHTS_FILE, most_of_file)):
            _copy(folder, partial, name, most)
        if (folder / MANIFEST_FILE).is_file():  # what it was made of; no part of what it computes, or of its digest
            _copy(folder, partial, MANIFEST_FILE, MAX_CONFIG_BYTES)
        digest = _digest_of(partial)
        place = _place(home, digest)
        if place.is_dir():
            return digest, False
        partial.rename(place)
        return digest, True
    except OSError as error:  # a full disk, a folder that is not ours
        raise CheckpointError(
            f"The adapter cannot be copied into {partial.parent}: {error.strerror or error}. Mind its space and rights."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def find_copy(home: Path, digest: str) -> Path:
    """The folder of a copy, its content checked. Raises `CheckpointError`."""
    if not _DIGEST.fullmatch(digest) or not (place := _place(home, digest)).is_dir():
        raise CheckpointError(
            "There is no such copy in this server's home folder. Add it with `interlace adapters add`."
        )
    if _digest_of(place) != digest:
        raise CheckpointError(f"The copy {place} is damaged. Remove that folder, and add the adapter again.")
    return place


def copy_folder(home: Path, entry: Added) -> Path:
    """Where an entry's copy lies."""
    return _place(home, entry.digest)


def read_added(home: Path) -> tuple[Added, ...]:
    """The entries; raises `ConfigError`."""
    file = _store(home) / "added.json"
    try:
        found = _decoder.decode(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}. Restore it from a backup, or remove it.") from error
    if any(not _DIGEST.fullmatch(entry.digest) for entry in found):
        raise ConfigError(f"{file} names a copy that cannot be one. Restore it from a backup, or remove it.")
    return found


def change_added(home: Path, change: Callable[[tuple[Added, ...]], tuple[Added, ...]]) -> None:
    """Replace the entries by what `change` makes of them, whole and synced, one change after the other."""
    change_list(_store(home) / "added.json", lambda: read_added(home), change)


def forget_copy(home: Path, digest: str) -> None:
    """Remove a copy, unless an entry names it."""
    if _DIGEST.fullmatch(digest) and all(entry.digest != digest for entry in read_added(home)):
        shutil.rmtree(_place(home, digest), ignore_errors=True)


def sweep_copies(home: Path) -> None:
    """At a start: remove what no entry names, and what was left half copied."""
    store = _store(home)
    if not store.is_dir():
        return
    with locked(store / "added.lock"):
        named = {_place(home, entry.digest) for entry in read_added(home)}
        for place in store.iterdir():
            copied = place.name.startswith(("sha256-", ".partial-")) and place not in named
            if copied and place.stat().st_mtime < time.time() - _UNCLAIMED_SECONDS:
                shutil.rmtree(place, ignore_errors=True)


def _store(home: Path) -> Path:
    return home / "adapters"


def _place(home: Path, digest: str) -> Path:
    return _store(home) / f"sha256-{digest}"


def _copy(folder: Path, to: Path, name: str, most_bytes: int) -> None:
    with opened(folder, name) as (file, size):
        if size > most_bytes:
            raise CheckpointError(f"{name} has {size:,} bytes, over the {most_bytes:,} that an adapter may have here.")
        with (to / name).open("xb") as copy:
            left = most_bytes
            while piece := file.read(min(_PIECE, left)):
                copy.write(piece)
                left -= len(piece)
            copy.flush()
            os.fsync(copy.fileno())


def _digest_of(folder: Path) -> str:
    """SHA-256 of both files' names, lengths and content."""
    whole = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        with opened(folder, name) as (file, size):
            whole.update(f"{name}\0{size}\0".encode())
            while piece := file.read(_PIECE):
                whole.update(piece)
    return whole.hexdigest()
