"""The two files of an adapter's folder, opened with care."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from interlace.errors import CheckpointError

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


@contextmanager
def opened(folder: Path, name: str) -> Iterator[tuple[BufferedReader, int]]:
    """The file and its size; a plain file, in `folder` itself."""
    try:
        # Not followed: a link could lead to anybody's file. Not waited for: a pipe could make us wait for ever.
        handle = os.open(folder / name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError as error:
        raise CheckpointError(_missing(folder, name)) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CheckpointError(f"{name} is a link. Copy the file itself into the adapter's folder.") from error
        raise CheckpointError(f"{name} cannot be read: {error.strerror}. Mind its folder and rights.") from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise CheckpointError(f"{name} is not a plain file. Save the adapter again.")
    with os.fdopen(handle, "rb") as file:
        try:
            yield file, status.st_size
        except OSError as error:
            raise CheckpointError(f"{name} cannot be read: {error.strerror}.") from error


def _missing(folder: Path, name: str) -> str:
    if name == WEIGHTS_FILE and (folder / "adapter_model.bin").exists():
        return (
            "adapter_model.bin is a pickle, which may run code when it is read, and is never loaded. Save the adapter "
            f"again with safe_serialization=True, which writes {WEIGHTS_FILE}."
        )
    return f"{name} is missing. An adapter is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, as PEFT saves it."
