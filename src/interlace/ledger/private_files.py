"""Secrets in files of mode 0600: one line each, whole or not there."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from interlace.errors import ConfigError


def read_private(path: Path) -> str | None:
    """The line in a private file; None where there is no such file. Raises `ConfigError`."""
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def installation_of(home: Path) -> str:
    """What tells this home from all others that share a database: made once, and kept beside the rest."""
    file = home / "installation"
    if (known := read_private(file)) is None:
        make_private(file, secrets.token_hex(6))
        known = read_private(file)
    return (known or "").strip()


def make_private(path: Path, line: str) -> None:
    """Make a file of mode 0600, whole and synced, unless it is there: two first starts at once agree on one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(partial, path)  # unlike rename, never replaces what another start made just now
    except FileExistsError:
        pass
    finally:
        partial.unlink()
