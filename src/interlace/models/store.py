"""The store: `HOME/checkpoints/NAME/` with a manifest and `files/`. No manifest, no checkpoint."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from interlace.errors import CheckpointError
from interlace.models.catalogue import catalogue
from interlace.models.checkpoint import MANIFEST_NAME, Checkpoint, Manifest, read_manifest
from interlace.models.describe import describe
from interlace.models.files import sha256_of
from interlace.models.lock import locked, try_lock
from interlace.models.refs import checked_name, is_name, is_ref


def default_home() -> Path:
    """`INTERLACE_HOME`, or `~/.interlace`."""
    return Path(os.environ.get("INTERLACE_HOME") or "~/.interlace").expanduser().absolute()


def shelf(home: Path) -> Path:
    """The folder that holds all checkpoints."""
    return home / "checkpoints"


def staging_of(name: str, home: Path) -> Path:
    """Where a pull of that name works; its leftovers are never listed."""
    return shelf(home) / ".staging" / name


def lock_of(name: str, home: Path) -> Path:
    """The lock file of that name."""
    return shelf(home) / ".locks" / f"{name}.lock"


def list_checkpoints(home: Path) -> list[Checkpoint]:
    """All checkpoints of the store, by name; those half-pulled, or without a sound manifest, are not among them."""
    return survey(home)[0]


def survey(home: Path) -> tuple[list[Checkpoint], dict[str, str]]:
    """All checkpoints of the store, by name, and what is wrong with each whose manifest cannot be read."""
    folder = shelf(home)
    names = [entry.name for entry in folder.iterdir() if is_name(entry.name)] if folder.is_dir() else []
    found: list[Checkpoint] = []
    faults: dict[str, str] = {}
    for name in sorted(names):
        try:
            if (checkpoint := find_checkpoint(name, home)) is not None:
                found.append(checkpoint)
        except CheckpointError as error:
            faults[name] = error.message
    return found, faults


def find_checkpoint(name: str, home: Path) -> Checkpoint | None:
    """The checkpoint of that name, or None."""
    folder = shelf(home) / checked_name(name)
    if not (folder / MANIFEST_NAME).is_file():
        return None
    return Checkpoint(name, folder / "files", read_manifest(folder / MANIFEST_NAME))


def get_checkpoint(name: str, home: Path) -> Checkpoint:
    """The checkpoint of that name; CheckpointError says how to get it, or what to look at, when it is not there."""
    found = find_checkpoint(name, home)
    if found is None:
        mend = f"Get it with: interlace pull {name}" if name in catalogue() else "See: interlace checkpoints list"
        raise CheckpointError(f"There is no checkpoint {name} in {shelf(home)}. {mend}")
    return found


def resolve(name_or_path: str, home: Path) -> Checkpoint:
    """A checkpoint of the store by its name, or whatever lies at a path, checked but neither copied nor hashed.

    A word without a slash is a name first; write `./word` for a path.
    """
    if not is_ref(name_or_path):
        found = find_checkpoint(name_or_path, home) if name_or_path == name_or_path.lower() else None
        if found is not None:
            return found
        if not Path(name_or_path).exists():
            return get_checkpoint(name_or_path, home)
    return _in_place(Path(name_or_path).expanduser().absolute())


def _in_place(path: Path) -> Checkpoint:
    about = describe(path)
    changed = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
    manifest = Manifest(
        source=str(path),
        files={},
        bytes=about.bytes,
        format=about.format,
        architecture=about.architecture,
        parameters=about.parameters,
        context_length=about.context_length,
        pulled=changed,
        licence=about.licence,
        chat_template=about.chat_template,
        sampling=about.sampling,
    )
    return Checkpoint(path.name.removesuffix(".gguf"), path, manifest)


def verify_checkpoint(name: str, home: Path) -> list[str]:
    """What is wrong with a checkpoint's files against its manifest, a line each; empty when all is well."""
    checkpoint = get_checkpoint(name, home)
    there = {
        file.relative_to(checkpoint.path).as_posix(): file
        for file in checkpoint.path.rglob("*")
        if file.is_symlink() or not file.is_dir()
    }
    faults = [f"{extra} is not in the manifest" for extra in sorted(there.keys() - checkpoint.manifest.files.keys())]
    for file_name, digest in sorted(checkpoint.manifest.files.items()):
        file = there.get(file_name)
        if file is None:
            faults.append(f"{file_name} is missing")
        elif file.is_symlink() or not file.is_file():
            faults.append(f"{file_name} is not a plain file")
        elif sha256_of(file) != digest:
            faults.append(f"{file_name} has changed: its SHA-256 is not the manifest's")
    return faults


def remove_checkpoint(name: str, home: Path, waiting: Callable[[], None] = lambda: None) -> int:
    """Remove a checkpoint and what an unfinished pull of it left, and return how many bytes are free again.

    It is gone at once, by one rename. Calls `waiting` once when a pull of that name has to end first.
    """
    with locked(lock_of(checked_name(name), home), waiting):
        folder, staging = shelf(home) / name, staging_of(name, home)
        if not folder.exists() and not staging.exists():
            get_checkpoint(name, home)  # raises, in words
        # Counted on disk: a checkpoint whose manifest is broken must be removable too.
        left = [file for place in (folder, staging) for file in place.rglob("*") if not file.is_dir()]
        freed = sum(file.lstat().st_size for file in left)
        if folder.exists():
            trash = staging.parent / f".removed-{uuid.uuid4().hex}"
            trash.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(trash)
        sweep(home)
        shutil.rmtree(staging, ignore_errors=True)
        return freed


def sweep(home: Path) -> None:
    """Delete what removals that were killed half-way left behind, and pulls that were killed at their very end."""
    for left in (shelf(home) / ".staging").glob("*"):
        if left.name.startswith(".removed-"):
            shutil.rmtree(left, ignore_errors=True)
        elif is_name(left.name) and (lock := try_lock(lock_of(left.name, home))) is not None:
            try:
                if (shelf(home) / left.name / MANIFEST_NAME).is_file():  # else the next pull of it goes on there
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                lock.release()
