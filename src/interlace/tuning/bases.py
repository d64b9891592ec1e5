"""The base of a run: found on this machine or pulled, and fit to be trained for the task."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from interlace.errors import CheckpointError, ConfigError
from interlace.models import (
    Checkpoint,
    DecoderArchitecture,
    known_models,
    list_checkpoints,
    locate,
    pull,
    read_architecture,
    resolve,
)
from interlace.tuning.folder import sha256_of
from interlace.tuning.heads import checkpoint_to_classify
from interlace.tuning.said import Said
from interlace.tuning.settings import TuneSettings
from interlace.tuning.work import Base

_SOURCE = re.compile(r"(?:hf|pypi):.+")
_OF_THE_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


def find_base(settings: TuneSettings, said: Said, home: Path) -> Checkpoint:
    """The checkpoint, pulled where it is one of the catalogue and not here; one that can be trained. Raises
    `ConfigError` for a base that is none, and what the pull raises."""
    name = settings.base
    try:
        checkpoint = resolve(name, home)
    except CheckpointError as error:
        if name not in known_models():
            raise ConfigError(f"base: {_meant(name, home) or error.message}") from error
        from interlace.models.bars import progress_for_people

        with progress_for_people() as progress:
            checkpoint = pull(name, home, progress=progress)
    except OSError as error:  # a name of a thousand letters, a folder that is not ours
        raise ConfigError(f"base: {name[:100]} cannot be read: {error.strerror}. Check the path.") from error
    try:
        is_decoder = isinstance(read_architecture(checkpoint.path), DecoderArchitecture)
    except CheckpointError as error:
        raise ConfigError(f"base: {name}: {error.message}") from error
    if settings.classifies:
        return checkpoint_to_classify(checkpoint)
    if not is_decoder:
        raise ConfigError(
            f"base: {name} is an encoder, which makes no text. To have it tell labels apart: "
            f"{said.write('task', 'classify')}. Else give a model that chats."
        )
    if not checkpoint.manifest.chat_template:
        raise ConfigError(
            f"base: {name} has no chat template, so how it is asked is not known. Give an instruction-tuned base, or "
            "put a chat_template into its tokenizer_config.json."
        )
    return checkpoint


def described(checkpoint: Checkpoint) -> Base:
    """What the training process is told of it."""
    layout, manifest = locate(checkpoint.path), checkpoint.manifest
    return Base(
        name=checkpoint.name,
        folder=str(layout.folder),
        gguf=layout.weights[0].name if layout.format == "gguf" else "",
        chat_template=manifest.chat_template or "",
        context_length=manifest.context_length,
        digests=manifest.files or {file.name: sha256_of(file) for file in layout.weights},
        licence=manifest.licence,
        source=manifest.source,
    )


def _meant(name: str, home: Path) -> str:
    """What was probably meant by a base that is not there; "" where that cannot be told."""
    if _SOURCE.fullmatch(name):
        return f"{name[:200]} is where a checkpoint comes from. Bring it here, and give its name: interlace pull {name}"
    if _OF_THE_HUB.fullmatch(name) and not Path(name).exists():
        return (
            f"There is no folder {name[:200]}. If it is one of the Hugging Face Hub, bring it here, and give its name: "
            f"interlace pull hf:{name}"
        )
    if not (there := [*known_models(), *(one.name for one in list_checkpoints(home))]):
        return ""
    if "/" in name or not (near := difflib.get_close_matches(name.lower(), there, 1)):
        return ""
    return f"There is no checkpoint {name[:100]}. Did you mean {near[0]}?"
