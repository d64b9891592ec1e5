"""What a checkpoint says about itself, all of it checked: the part of a manifest that its files decide."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from interlace.errors import CheckpointError
from interlace.models.architecture import Architecture, DecoderArchitecture, read_architecture
from interlace.models.checkpoint import SuggestedSampling
from interlace.models.layout import Format, Layout, locate, read_json
from interlace.models.metadata import gguf_metadata
from interlace.models.tensors import check_tensors
from interlace.models.weights import open_weights

# Identifiers as the Hub and GGUF files write them → SPDX
_SPDX = {
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "bsd-3-clause": "BSD-3-Clause",
    "cc-by-4.0": "CC-BY-4.0",
    "cc-by-sa-4.0": "CC-BY-SA-4.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
    "cc0-1.0": "CC0-1.0",
    "gpl-3.0": "GPL-3.0-only",
    "unlicense": "Unlicense",
}


@dataclass(frozen=True, slots=True)
class Description:
    """What the files of a checkpoint are; `bytes` of its weights."""

    format: Format
    architecture: str
    parameters: int
    context_length: int
    bytes: int
    licence: str | None
    chat_template: str | None
    sampling: SuggestedSampling


def describe(path: Path) -> Description:
    """Read and check everything but the numbers themselves; CheckpointError for what could not be served."""
    layout, architecture = locate(path), read_architecture(path)
    with open_weights(path) as weights:
        check_tensors(architecture, weights)
        parameters = weights.parameters()
    licence, template = _gguf_words(layout) if layout.format == "gguf" else (None, folder_template(layout.folder))
    return Description(
        format=layout.format,
        architecture=architecture.family,
        parameters=parameters,
        context_length=_context_length(architecture),
        bytes=sum(file.stat().st_size for file in layout.weights),
        licence=licence,
        chat_template=template,
        sampling=SuggestedSampling() if layout.format == "gguf" else folder_sampling(layout.folder),
    )


def _context_length(architecture: Architecture) -> int:
    return architecture.context_length if isinstance(architecture, DecoderArchitecture) else architecture.max_tokens


def spdx(identifier: object) -> str | None:
    """The SPDX identifier of a licence as a model card names it; "other" and nonsense become None."""
    if not isinstance(identifier, str) or not identifier.isascii() or identifier.lower() in ("", "other", "unknown"):
        return None
    plain = "".join(character if character.isalnum() or character in ".-" else "-" for character in identifier[:60])
    return _SPDX.get(identifier.lower(), f"LicenseRef-{plain}")


def folder_template(folder: Path) -> str | None:
    """The chat template of a Hugging Face folder: its own file, or the one in `tokenizer_config.json`."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        try:
            return own.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{own.name} is not UTF-8.") from error
    config = folder / "tokenizer_config.json"
    template = read_json(config).get("chat_template") if config.is_file() else None
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def folder_sampling(folder: Path) -> SuggestedSampling:
    """What a Hugging Face folder's `generation_config.json` suggests; nothing where it is missing or greedy."""
    file = folder / "generation_config.json"
    config = read_json(file) if file.is_file() else {}
    if not config.get("do_sample"):
        return SuggestedSampling()
    known = {name: config[name] for name in SuggestedSampling.__struct_fields__ if config.get(name) is not None}
    try:
        return msgspec.convert(known, SuggestedSampling)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{file.name} suggests sampling that makes no sense: {error}.") from error


def _gguf_words(layout: Layout) -> tuple[str | None, str | None]:
    metadata = gguf_metadata(layout.weights[0])
    template = metadata.get("tokenizer.chat_template")
    return spdx(metadata.get("general.license")), template if isinstance(template, str) else None
