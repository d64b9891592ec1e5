"""A data set from the Hugging Face Hub: its listing through huggingface_hub, its files with our own resume.

    HOME/datasets/OWNER--NAME/COMMIT/listing.json    what the Hub said of that commit
    HOME/datasets/OWNER--NAME/COMMIT/files/          the files that were wanted, each verified against it

Files alone are read, never a program: a data set that is made by one is refused. A commit that is here needs no
network.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from interlace.errors import CheckpointError
from interlace.models.dataset_layout import class_names_of, files_of, splits_of
from interlace.models.download import Remote, fetch
from interlace.models.files import safe_name
from interlace.models.lock import locked
from interlace.models.progress import Progress, Silent
from interlace.models.refs import HubRef
from interlace.models.room import check_disk
from interlace.models.space import SourceUnavailable

_REF = re.compile(r"(?:hub|hf):([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w./-]{1,100}))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CONVERSION = "refs/convert/parquet"


class _File(msgspec.Struct, frozen=True):
    name: str
    bytes: int | None
    sha256: str | None
    git_sha1: str | None


class _Listing(msgspec.Struct, frozen=True):
    files: list[_File]
    card: dict[str, Any]
    licence: str | None
    gated: bool = False


@dataclass(frozen=True, slots=True)
class DataSet:
    """What was pulled: of each split that was wanted, the names of its files and where they lie, in order. Of columns
    that hold numbers of classes, the names of those, from 0 on, as the card tells them."""

    repo: str
    commit: str
    config: str
    licence: str | None
    files: dict[str, list[tuple[str, Path]]]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"hub:{self.repo}@{self.commit}"


def is_data_set(text: str) -> bool:
    """Whether it names a data set of the Hub, by its form."""
    return text.startswith(("hub:", "hf:"))


def pull_data_set(
    text: str, home: Path, *, config: str, splits: Sequence[str], endings: Sequence[str],
    progress: Progress | None = None,
) -> DataSet:  # fmt: skip
    """Bring the files of these splits of `hub:OWNER/NAME@REVISION` here. CheckpointError says in words what is wrong:
    its form, a Hub out of reach, a missing or gated repository, a program in place of files, no such split."""
    listener = progress or Silent()
    ref = _ref(text)
    shelf = home / "datasets" / ref.repo.replace("/", "--")
    commit, listing = _listed(ref, shelf)
    where = f"hub:{ref.repo}"
    names = [file.name for file in listing.files]
    if (program := f"{ref.repo.rpartition('/')[2]}.py") in names:
        raise CheckpointError(
            f"{where} is made by a program ({program}), and no code of others is run. Its files, as the Hub has "
            f"converted them, may be there: {where}@{_CONVERSION}"
        )
    chosen, known = splits_of(names, listing.card, config, endings, where)
    wanted = {split: [safe_name(name) for name in files_of(known, split, where)] for split in splits}
    folder = shelf / commit
    stated = {file.name: file for file in listing.files}
    with locked(shelf / ".lock", lambda: listener.say(f"Another run is pulling {where}; waiting for it.")):
        every = sorted({name for names in wanted.values() for name in names})
        missing = [name for name in every if not (folder / "files" / name).is_file()]
        if missing and _offline():
            raise SourceUnavailable(f"{missing[0]} of {where} is not here, and HF_HUB_OFFLINE is set.")
        (folder / "parts").mkdir(parents=True, exist_ok=True)
        check_disk(folder, sum(stated[name].bytes or 0 for name in missing))
        try:
            for name in every:
                target = folder / "files" / name
                fetch(_remote(ref.repo, commit, stated[name]), target, folder / "parts", _Quiet(listener))
        except SourceUnavailable as error:
            if not listing.gated:
                raise
            raise SourceUnavailable(
                f"{error.message} {where} is gated: accept its terms on the Hub, then set HF_TOKEN to a token of your "
                "account."
            ) from error
    files = {split: [(name, folder / "files" / name) for name in names] for split, names in wanted.items()}
    return DataSet(ref.repo, commit, chosen, listing.licence, files, class_names_of(listing.card, chosen))


class _Quiet:
    """Without a word on files that are here already."""

    def __init__(self, progress: Progress) -> None:
        self.begin, self.advance, self.end = progress.begin, progress.advance, progress.end

    def say(self, text: str) -> None:
        """Drop it."""


def _ref(text: str) -> HubRef:
    found = _REF.fullmatch(text)
    if found is None or ".." in text or "--" in found[1]:
        raise CheckpointError(
            f"{text[:200]!r} is no data set of the Hub. Write hub:OWNER/NAME or hub:OWNER/NAME@REVISION."
        )
    return HubRef(found[1], found[2])


def _listed(ref: HubRef, shelf: Path) -> tuple[str, _Listing]:
    """The commit that is meant, and what it has; a commit that was listed before is not asked for again, unless that
    was by a release that did not keep what classes are called."""
    pinned = ref.revision if ref.revision and _COMMIT.fullmatch(ref.revision) else None
    known = _kept(shelf / pinned / "listing.json") if pinned else None
    if pinned and known and "dataset_info" in known.card:
        return pinned, known
    try:
        commit, listing = _asked(ref)
    except SourceUnavailable as error:
        if pinned and known:
            return pinned, known
        here = sorted(each.parent.name for each in shelf.glob("*/listing.json") if _kept(each))
        if here:
            raise SourceUnavailable(
                f"{error.message} What is here needs no network: name the commit, hub:{ref.repo}@{here[-1]}"
            ) from error
        raise
    kept = shelf / commit / "listing.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_name(f".listing.{secrets.token_hex(8)}.partial")  # two runs may do so at once
    try:
        with partial.open("xb") as file:
            file.write(msgspec.json.encode(listing))
        partial.replace(kept)
    finally:
        partial.unlink(missing_ok=True)
    return commit, listing


def _kept(file: Path) -> _Listing | None:
    """None where it is not there, or damaged: then the Hub is asked again."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Listing)
    except (OSError, ValueError, RecursionError):
        return None


def _asked(ref: HubRef) -> tuple[str, _Listing]:
    from huggingface_hub import HfApi

    from interlace.models.source_hub import LISTING_TIMEOUT_SECONDS, in_words, licence_of

    try:
        info = HfApi().dataset_info(
            ref.repo, revision=ref.revision, files_metadata=True, timeout=LISTING_TIMEOUT_SECONDS
        )
    except Exception as error:  # every client error of the library is translated; what is unknown goes on up
        translated = in_words(error, f"The data set hub:{ref.repo}", ref.revision)
        if translated is None:
            raise
        raise translated from error
    files = [
        _File(
            sibling.rfilename,
            sibling.size,
            sibling.lfs.sha256 if sibling.lfs is not None else None,
            sibling.blob_id if sibling.lfs is None else None,
        )
        for sibling in info.siblings or []
    ]
    card = {} if info.card_data is None else info.card_data.to_dict()  # type: ignore[no-untyped-call]
    commit = str(info.sha)
    if not _COMMIT.fullmatch(commit):
        raise SourceUnavailable(f"The Hub names no commit of hub:{ref.repo}.")
    said = {name: card.get(name) for name in ("configs", "dataset_info")}
    return commit, _Listing(files, said, licence_of(info), bool(info.gated))


def _offline() -> bool:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    return bool(HF_HUB_OFFLINE)


def _remote(repo: str, commit: str, file: _File) -> Remote:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, not in its __all__

    return Remote(
        name=file.name,
        url=hf_hub_url(repo, file.name, repo_type="dataset", revision=commit),
        bytes=file.bytes,
        sha256=file.sha256,
        git_sha1=file.git_sha1,
        headers=build_hf_headers(library_name="interlace"),
    )
