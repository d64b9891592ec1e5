"""Whose the models and adapters are that a command puts into service."""

from __future__ import annotations

import time
import unicodedata
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from interlace.config import load_settings
from interlace.errors import Conflict, NotFound
from interlace.gateway.asking import Where, ask_server
from interlace.gateway.chat import ChatError, NoServer, server_url
from interlace.gateway.ledger_client import perform
from interlace.ledger import LedgerBusy

_PATIENCE_SECONDS, _PAUSE_SECONDS = 3.0, 0.1  # with another command that looks into the ledger, too


@dataclass(frozen=True, slots=True)
class Owner:
    """An organisation; both are empty for what is everybody's."""

    id: str = ""
    name: str = ""

    def has(self, owner: str) -> bool:
        """Whether that setting means it: a name or an id, "" for everybody."""
        return unicodedata.normalize("NFC", owner) in (self.id, self.name)


def find_owner(word: str, where: Where) -> Owner:
    """The organisation of that name or id, asked of the running server, else read in the ledger; "": everybody. Raises
    `NotFound` where there is none."""
    if not word:
        return Owner()
    settings = load_settings(where.config, where.env, {"home": where.home}, need_keys=False)
    url = where.url or where.env.get("INTERLACE_URL") or server_url(settings)
    try:
        found = ask_server("GET", f"/orgs/{quote(word, safe='')}", None, url, settings, where)
    except NoServer:
        found = _read(word, where)
    try:
        return Owner(str(found["id"]), str(found["name"]))
    except (KeyError, TypeError):
        raise ChatError(f"{url} did not answer as Interlace's admin API does.") from None


def _read(word: str, where: Where) -> Any:
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return perform("orgs.show", {"org": word}, where)
        except LedgerBusy:
            if time.monotonic() > until:
                raise
            time.sleep(_PAUSE_SECONDS)


def check_owner(kind: str, name: str, old: str, new: str, where: Where) -> None:
    """What takes the place of an organisation's own is that organisation's: raise `Conflict` for another. `kind`:
    models or adapters; `old` and `new`: ids, "" for everybody."""
    if old != new:
        raise Conflict(
            f"The {name} that is served belongs to {_shown(old, where)}, not to {_shown(new, where)}. "
            f"Say so with --owner, or remove it first: interlace {kind} rm {name}",
            param="owner",
        )


def _shown(owner: str, where: Where) -> str:
    """An organisation by its name, as people say it, with its id."""
    if not owner:
        return "everybody"
    try:
        found = find_owner(owner, where)
    except NotFound:  # of a ledger that is gone
        return owner
    return f"{found.name} ({found.id})"
