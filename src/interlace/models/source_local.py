"""A checkpoint from a file or folder on this machine, copied: a linked file would change with its original."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from interlace.errors import CheckpointError
from interlace.models.files import CHUNK_BYTES, choose, inspect_file, is_pickle_name, safe_name
from interlace.models.progress import Progress
from interlace.models.refs import PathRef
from interlace.models.room import check_disk
from interlace.models.space import Origin, Space


def pull_local(ref: PathRef, space: Space, progress: Progress) -> Origin:
    """Bring the files of a local checkpoint into `space`; symbolic links and pickles are refused by name."""
    if not ref.path.exists():
        raise CheckpointError(f"{ref.path} does not exist.{ref.hint}")
    folder, names = _listed(ref.path)
    for name in names:
        inspect_file(folder / name, name)
    shutil.rmtree(space.files, ignore_errors=True)
    check_disk(space.root, sum((folder / name).stat().st_size for name in names))
    for name in names:
        target = space.files / name
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy(folder / name, target, name, progress)
    return Origin(str(ref))


def _listed(path: Path) -> tuple[Path, list[str]]:
    """The folder and the names below it to take; a symbolic link anywhere among them is refused."""
    if path.is_file():
        _refuse_link(path, path.name)
        if path.suffix == ".safetensors":
            raise CheckpointError(f"{path.name} alone is no checkpoint: pull the folder that has its config.json too.")
        if path.suffix != ".gguf" and not is_pickle_name(path.name):  # those get their own words
            raise CheckpointError(f"{path.name} is no checkpoint: give a file that ends with .gguf, or a folder.")
        return path.parent, [safe_name(path.name)]
    found = [
        entry.relative_to(path).as_posix()
        for pattern in ("*", "*/config.json")
        for entry in path.glob(pattern)
        if entry.is_symlink() or entry.is_file()
    ]
    names = choose(found, str(path), lambda name: str(path / name))
    for name in names:
        _refuse_link(path / name, name)
        _refuse_link((path / name).parent, name)
    return path, [safe_name(name) for name in names]


def _refuse_link(path: Path, name: str) -> None:
    if path.is_symlink():
        raise CheckpointError(f"{name} is a symbolic link; only plain files may enter the store. Copy it first.")


def _copy(origin: Path, target: Path, name: str, progress: Progress) -> None:
    with origin.open("rb") as file, target.open("wb") as copy:
        progress.begin(f"Copying {name}", os.fstat(file.fileno()).st_size)
        while chunk := file.read(CHUNK_BYTES):
            copy.write(chunk)
            progress.advance(len(chunk))
        progress.end()
