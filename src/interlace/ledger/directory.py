"""Who may use what, in memory: organisations, projects, keys and plans as the database has them, looked up per request.

A key is looked up by the keyed hash of its text: one dictionary access, whatever the number of keys. Entries are
replaced whole when an operation changes them, so what a request has in its hand never changes underneath.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, Table, select

from interlace.errors import ConfigError
from interlace.ledger.book import AccountKey, Accounts
from interlace.ledger.limits import NO_RATES, Rates
from interlace.ledger.prices import Price, price_at
from interlace.ledger.private_files import make_private, read_private
from interlace.ledger.schema import api_keys, organisations, plans, prices, projects

SCOPES = ("inference", "admin")
"""What a key may be for: the endpoints of models, or the admin API."""

KEY_PREFIX = "sk-il-"


@dataclass(frozen=True, slots=True)
class Organisation:
    """Owns projects. `budget_nanos` is a calendar month's; None: unbounded, here and below."""

    id: str
    name: str
    budget_nanos: int | None
    created_at: int


@dataclass(frozen=True, slots=True)
class Project:
    """Owns keys."""

    id: str
    org_id: str
    name: str
    budget_nanos: int | None
    created_at: int
    erased_at: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A tier, held by every key on it by itself. `models` None: all."""

    id: str
    name: str
    rates: Rates = NO_RATES
    budget_nanos: int | None = None
    priority: int = 0
    default_max_tokens: int | None = None
    largest_max_tokens: int | None = None
    models: tuple[str, ...] | None = None
    source: str = "db"
    created_at: int = 0
    retired_at: int | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """An API key, without its text. `hint` is the end of it."""

    id: str
    project_id: str
    plan_id: str | None
    name: str
    digest: bytes
    hint: str
    scopes: tuple[str, ...]
    models: tuple[str, ...] | None
    budget_nanos: int | None
    created_at: int
    expires_at: int | None
    revoked_at: int | None


NO_PLAN = Plan(id="", name="")
"""Of keys without a plan: no limits but those of their project and organisation."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, resolved: a key with its plan, project and organisation."""

    key: Key
    plan: Plan
    project: Project
    organisation: Organisation

    @property
    def tenant(self) -> str:
        """What keeps cached prefixes apart; it reaches the engine, the key does not."""
        return self.organisation.id

    def may_use(self, model: str) -> bool:
        """Whether key and plan both allow the model: a list names models exactly, or all adapters of one, `base:*`."""
        lists = (self.key.models, self.plan.models)
        if all(models is None or model in models for models in lists):
            return True
        base = model.rpartition(":")[0]
        return bool(base) and all(models is None or model in models or f"{base}:*" in models for models in lists)

    def accounts(self, month: str) -> Accounts:
        """Those that pay for a request of this month."""
        return (
            ("org", self.organisation.id, month),
            ("project", self.project.id, month),
            ("key", self.key.id, month),
        )


@dataclass
class Directory:
    """All entries by id; keys by digest too, prices by model."""

    organisations: dict[str, Organisation] = field(default_factory=dict)
    projects: dict[str, Project] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)
    keys: dict[str, Key] = field(default_factory=dict)
    prices: dict[str, list[Price]] = field(default_factory=dict)
    _by_digest: dict[bytes, Key] = field(default_factory=dict)
    _callers: dict[bytes, Caller] = field(default_factory=dict)  # those that asked, as long as nothing is changed

    @classmethod
    def load(cls, connection: Connection) -> Directory:
        """Everything the database has."""
        directory = cls()
        for table in (organisations, projects, plans, api_keys, prices):
            for row in connection.execute(select(table)):
                directory.put(entry_of(table, row))
        return directory

    def put(self, entry: Organisation | Project | Plan | Key | Price) -> None:
        """Take in one entry, new or changed."""
        self._put(entry)
        self._callers = {}  # another one: who looks somebody up meanwhile must not leave what was true before in it

    def _put(self, entry: Organisation | Project | Plan | Key | Price) -> None:
        match entry:
            case Organisation():
                self.organisations[entry.id] = entry
            case Project():
                self.projects[entry.id] = entry
            case Plan():
                self.plans[entry.id] = entry
            case Key():
                before = self.keys.get(entry.id)
                self.keys[entry.id] = self._by_digest[entry.digest] = entry
                if before is not None and before.digest != entry.digest:  # never a moment without: others look it up
                    self._by_digest.pop(before.digest, None)
            case Price():
                others = [price for price in self.prices.get(entry.model, ()) if price.id != entry.id]
                self.prices[entry.model] = [*others, entry]

    def caller(self, digest: bytes) -> Caller | None:
        """Whose key has that digest, revoked and expired ones too."""
        callers = self._callers
        if (known := callers.get(digest)) is not None:
            return known
        key = self._by_digest.get(digest)
        if key is None:
            return None
        project = self.projects[key.project_id]
        plan = NO_PLAN if key.plan_id is None else self.plans[key.plan_id]
        found = callers[digest] = Caller(key, plan, project, self.organisations[project.org_id])
        return found

    def budget(self, account: AccountKey) -> int | None:
        """The budget of an account now; a key has the smaller of its own and its plan's."""
        scope, id, _ = account
        if scope == "org":
            return self.organisations[id].budget_nanos
        if scope == "project":
            return self.projects[id].budget_nanos
        key = self.keys[id]
        planned = None if key.plan_id is None else self.plans[key.plan_id].budget_nanos
        if planned is None or key.budget_nanos is None:
            return key.budget_nanos if planned is None else planned
        return min(planned, key.budget_nanos)

    def price(self, model: str, moment: int, base: str = "") -> Price | None:
        """The price of a model at a moment; of an adapter without one of its own, its base's."""
        own = price_at(self.prices.get(model, ()), moment)
        return price_at(self.prices.get(base, ()), moment) if own is None and base else own


def entry_of(table: Table, row: Row[Any]) -> Organisation | Project | Plan | Key | Price:
    """A row as the entry it is."""
    values: dict[str, Any] = dict(row._mapping)  # its public name, whatever the underscore says
    if table is organisations:
        return Organisation(**values)
    if table is projects:
        return Project(**values)
    if table is plans:
        rates = Rates(*(values.pop(name) for name in ("rpm", "tpm", "concurrency")))
        return Plan(rates=rates, models=_names(values.pop("models")), **values)
    if table is api_keys:
        scopes = tuple(json.loads(values.pop("scopes")))
        return Key(scopes=scopes, models=_names(values.pop("models")), **values)
    return Price(**values)


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(json.loads(text))


# --- keys --------------------------------------------------------------------------------------------------------


class KeyHasher:
    """The keyed hash of API keys (BLAKE2b, RFC 7693). Its secret lies beside the database, not in it: who can only
    write to the database cannot make a key of his own."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def digest(self, key: str) -> bytes:
        """32 bytes, in about a microsecond."""
        return hashlib.blake2b(key.encode("utf-8", "surrogateescape"), key=self._secret, digest_size=32).digest()


def new_key() -> str:
    """A fresh key: 256 random bits, so that nothing but the key itself leads to its hash."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hint_of(key: str) -> str:
    """What is shown of a key to tell it from others."""
    return f"…{key[-4:]}" if len(key) >= 16 else "…"


def ensure_secret(home: Path, env: Mapping[str, str] | None = None) -> bytes:
    """The secret of the keyed hash: `INTERLACE_SECRET`, else the file `secret` in the home folder (mode 0600), made at
    the first start. Raises `ConfigError` for one that cannot be used."""
    chosen = (os.environ if env is None else env).get("INTERLACE_SECRET")
    if chosen is not None:
        if len(chosen) < 32:
            raise ConfigError("INTERLACE_SECRET has fewer than 32 characters. Set 32 random ones or more, and keep it.")
        return hashlib.sha256(chosen.encode()).digest()
    path = home / "secret"
    if (text := read_private(path)) is None:
        make_private(path, secrets.token_hex(32))
        text = read_private(path)
    try:
        secret = bytes.fromhex(text or "")
    except ValueError:
        secret = b""
    if len(secret) != 32:
        raise ConfigError(f"{path} is damaged: it should hold 64 hexadecimal digits. Restore it from a backup.")
    return secret
