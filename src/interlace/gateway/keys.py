"""Who asks: the one API key of this server, until the ledger knows organisations, projects and their keys."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from interlace.errors import ConfigError, Unauthenticated

_PREFIX = "sk-il-"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `tenant` keeps cached prefixes apart; it reaches the engine, the key does not."""

    key_id: str
    tenant: str


class Keys:
    """The accepted key. Only its hash is kept: a dump of this process does not show it."""

    def __init__(self, key: str) -> None:
        self._hash = _hash(key)

    def authenticate(self, credential: str | None) -> Caller:
        """The caller behind the value of an `Authorization` header; raises `Unauthenticated`."""
        scheme, _, key = (credential or "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise Unauthenticated(
                "You didn't provide an API key. You need to provide your API key in an Authorization header using "
                "Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
            )
        if not hmac.compare_digest(_hash(key), self._hash):
            raise Unauthenticated("Incorrect API key provided. The server's own key is in the file `key` of its home.")
        return Caller(key_id="default", tenant="default")


def read_key(home: Path, env: Mapping[str, str] | None = None) -> str | None:
    """The key of a server with this home: `INTERLACE_API_KEY`, else the kept one; None before the first start."""
    if chosen := (os.environ if env is None else env).get("INTERLACE_API_KEY"):
        return chosen
    try:
        kept = key_file(home).read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The API key in {key_file(home)} cannot be read: {error}") from error
    if not kept:
        raise ConfigError(f"The API key file {key_file(home)} is empty. Remove it, and the next start makes a new key.")
    return kept


def ensure_key(home: Path, env: Mapping[str, str] | None = None) -> str:
    """The key of this server, made and kept (mode 0600) at the first start. Two first starts at once agree on one."""
    if key := read_key(home, env):
        return key
    home.mkdir(parents=True, exist_ok=True)
    made = _PREFIX + secrets.token_urlsafe(32)
    partial = home / f".key.{secrets.token_hex(8)}"
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(made + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(partial, key_file(home))  # unlike rename, never replaces a key that another start made just now
    except FileExistsError:
        pass
    finally:
        partial.unlink()
    key = read_key(home, {})
    assert key is not None
    return key


def key_file(home: Path) -> Path:
    """Where the first key is kept."""
    return home / "key"


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
