"""Models that were added by command, beside those of the configuration: a list in the home folder.

    models/added.json              which checkpoints of the store are served, by which names, and whose they are

It is read here, for the configuration may name them; `models/model_store.py` writes it.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from interlace.errors import ConfigError

_CHECKPOINT = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")


class AddedModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model that is served: by which name, which checkpoint of the store, whose ("": everybody's), and the model
    whose price it has until it has one of its own ("": none)."""

    name: str
    checkpoint: str
    owner: str = ""
    like: str = ""


_decoder = msgspec.json.Decoder(tuple[AddedModel, ...])


def added_models_file(home: Path) -> Path:
    """Where the list lies."""
    return home / "models" / "added.json"


def read_added_models(home: Path) -> tuple[AddedModel, ...]:
    """The entries; raises `ConfigError`."""
    file = added_models_file(home)
    try:
        found = _decoder.decode(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}. Restore it from a backup, or remove it.") from error
    if any(not _CHECKPOINT.fullmatch(entry.checkpoint) for entry in found):
        raise ConfigError(f"{file} names a checkpoint that cannot be one. Restore it from a backup, or remove it.")
    return found
