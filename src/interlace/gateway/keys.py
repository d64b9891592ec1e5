"""The server's own key: made at the first start, kept in the home folder, for its owner and for `interlace chat`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from interlace.errors import ConfigError
from interlace.ledger import make_private, read_private


def read_key(home: Path, env: Mapping[str, str] | None = None) -> str | None:
    """The key of a server with this home: `INTERLACE_API_KEY`, else the kept one; None before the first start."""
    if chosen := (os.environ if env is None else env).get("INTERLACE_API_KEY", "").strip():
        if not chosen.isascii() or not chosen.isprintable() or " " in chosen:
            raise ConfigError("INTERLACE_API_KEY holds what no header can carry. Use letters, digits and - _ . only.")
        return chosen
    kept = read_private(key_file(home))
    if kept == "":
        raise ConfigError(f"The API key file {key_file(home)} is empty. Remove it, and the next start makes a new key.")
    return kept


def ensure_key(home: Path, env: Mapping[str, str] | None = None) -> str:
    """The key of this server, made and kept (mode 0600) at the first start. Two first starts at once agree on one."""
    if key := read_key(home, env):
        return key
    from interlace.ledger import new_key  # with its hashes and tables: not for every `interlace chat`

    make_private(key_file(home), new_key())
    key = read_key(home, {})
    assert key is not None
    return key


def key_file(home: Path) -> Path:
    """Where the first key is kept."""
    return home / "key"
