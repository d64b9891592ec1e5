"""A checkpoint in the store, and the manifest that makes it one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from interlace.errors import CheckpointError
from interlace.models.layout import Format

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 1


class SuggestedSampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a checkpoint's makers say tokens should be chosen, where a caller does not say; None: they do not say."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class AgreementGate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often a precision must choose the token that fp32 chooses to be taken by `precision: auto`: per cent of at
    least so many tokens."""

    percent: Annotated[float, msgspec.Meta(ge=0, le=100)] = 98.5
    tokens: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 2048

    def passed_by(self, agreed: int, tokens: int) -> bool:
        """Whether so many of so many suffice."""
        return tokens >= self.tokens and 100 * agreed >= self.percent * tokens


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a checkpoint is and where it came from. The checkpoint exists once this file does."""

    source: str  # as given to `pull`, revision and version resolved
    files: dict[str, str]  # path inside the checkpoint → SHA-256 in hexadecimal
    bytes: int  # of all files together
    format: Format
    architecture: str  # "llama" or "bert"
    parameters: int
    context_length: int  # tokens
    pulled: str  # date and time, ISO 8601, UTC
    licence: str | None = None  # SPDX identifier, where the source states one
    chat_template: str | None = None
    sampling: SuggestedSampling = SuggestedSampling()
    gate: AgreementGate = AgreementGate()
    version: int = MANIFEST_VERSION


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights, config and tokenizer on disk. `path` is what `read_architecture` and `open_weights` take."""

    name: str
    path: Path
    manifest: Manifest


def write_manifest(file: Path, manifest: Manifest) -> None:
    """Write it as readable JSON; the caller makes it durable."""
    file.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")


def read_manifest(file: Path) -> Manifest:
    """Read it back; CheckpointError when it is missing or broken."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Manifest)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{file} is not a manifest of Interlace: {error}. "
            f"Remove the checkpoint and pull it again: interlace checkpoints rm {file.parent.name}"
        ) from error
