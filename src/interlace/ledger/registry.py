"""The ledger's office: the open database with its directory, and what a start does to them.

    lock → open → migrate → take over what interlace.yaml names → first organisation, project and key → load

One process at a time has a home and a SQLite file: the others go through its admin API. The lock is the system's, so
it is free the moment its holder dies. A PostgreSQL database may be shared by several homes, each on a machine of its
own: budgets are then leased (`escrow`), and changes told (`changes`).
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Table, insert, select, update
from sqlalchemy.exc import DBAPIError

from interlace.config import ModelSettings, PerMillion, PlanSettings, PriceSettings, Settings
from interlace.errors import ConfigError, LedgerUnavailable
from interlace.ledger import changes
from interlace.ledger.clock import Calendar, Clock, SystemClock
from interlace.ledger.database import LedgerBusy, database_url
from interlace.ledger.directory import (
    SCOPES,
    Directory,
    Key,
    KeyHasher,
    Organisation,
    Plan,
    Project,
    ensure_secret,
    entry_of,
    hint_of,
)
from interlace.ledger.migrations import migrate
from interlace.ledger.priced_as import LIKE, all_likes, follow_likes, likes_of
from interlace.ledger.prices import KINDS, Price
from interlace.ledger.private_files import installation_of
from interlace.ledger.schema import api_keys, organisations, plans, prices, projects
from interlace.ledger.store import Store
from interlace.models import HeldLock, known_models, try_lock
from interlace.money import Micros, Nanos

log = logging.getLogger(__name__)

Entry = Organisation | Project | Plan | Key | Price

DEFAULT_ORGANISATION = DEFAULT_PROJECT = "default"
FIRST_KEY, ENVIRONMENT_KEY = "first", "environment"


@dataclass
class Registry:
    """The open ledger, without the running counters of a gateway. `changed` is told after every change of who may
    use what. `settings` are those of the last load."""

    store: Store
    directory: Directory
    hasher: KeyHasher
    clock: Clock
    calendar: Calendar
    settings: Settings
    changed: Callable[[], None] = field(default=lambda: None)
    tell: Callable[[list[Entry]], None] = field(
        default=lambda _: None
    )  # other processes, of what is new in the directory
    also_erase: list[Callable[[str], None]] = field(default_factory=list)  # with a project, by id: other rooms' share
    _locks: list[HeldLock] = field(default_factory=list)
    _liked: set[str] = field(default_factory=set)  # models that we have given others' prices
    _seen: int = 0  # changes of other installations, where there may be others
    _changing: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(
        cls,
        settings: Settings,
        env: Mapping[str, str] | None = None,
        clock: Clock | None = None,
        *,
        take_over: bool = True,
    ) -> Registry:
        """Open the ledger that settings name, made at the first time.

        `take_over` False leaves what an interlace.yaml has named there before as it is: there was none to read now.
        Raises `LedgerBusy` while another process has it, `ConfigError` when it cannot be opened.
        """
        env = os.environ if env is None else env
        url = database_url(settings)
        try:
            settings.home.mkdir(parents=True, exist_ok=True)
            locks = lock_all(lock_files(settings.home, url))
        except OSError as error:
            mend = "Set INTERLACE_HOME" + (", or mend ledger.url." if settings.ledger.url else ".")
            raise ConfigError(f"The home folder {settings.home} cannot be used: {error}. {mend}") from error
        clock = clock or SystemClock()
        hasher = KeyHasher(ensure_secret(settings.home, env))
        store = Store(url)
        store.start()
        registry = cls(store, Directory(), hasher, clock, Calendar(settings.ledger.time_zone), settings, _locks=locks)
        try:
            registry.directory = store.write(partial(registry._set_up, take_over=take_over))
        except (LedgerUnavailable, DBAPIError) as error:
            registry.close()
            place = settings.home / "ledger.db" if not settings.ledger.url else "that ledger.url names"
            cause = error.__cause__ if isinstance(error, LedgerUnavailable) else error
            why = str(cause.orig) if isinstance(cause, DBAPIError) else str(error)  # an operator reads it, no caller
            raise ConfigError(f"The database {place} cannot be used. {why}") from error
        except BaseException:
            registry.close()
            raise
        return registry

    def close(self) -> None:
        """Write what is queued and let the next process have the ledger."""
        self.store.close()
        for lock in self._locks:
            lock.release()

    def change(self, work: Callable[[Connection], list[Entry]]) -> list[Entry]:
        """Run `work` in one transaction and take the entries that it made or changed into the directory.

        One change at a time: `work` may trust what the directory says, and no later change is put there before it.
        """
        with self._changing:
            entries = self.store.write(partial(self._in_turn, work) if self.several else work)
            for entry in entries:
                self.directory.put(entry)
            self.tell(entries)
        self.changed()
        return entries

    @property
    def several(self) -> bool:
        """Whether other installations may have the same database open."""
        return self.store.engine.dialect.name == "postgresql"

    def catch_up(self) -> None:
        """Take in what other installations have changed. Waits for the disk; raises `LedgerUnavailable`."""
        with self._changing:
            self._seen, entries = self.store.read(partial(changes.since, seen=self._seen))
            for entry in entries:
                self.directory.put(entry)
            if entries:
                self.tell(entries)
        if entries:
            self.changed()
        if self._liked and any(isinstance(entry, Price) and entry.source != LIKE for entry in entries):
            self.change(self.follow_likes)

    def follow_likes(self, connection: Connection) -> list[Entry]:
        """Part of every change of prices: models that are priced as others are so still."""
        return [*follow_likes(connection, likes_of(self.settings), self.clock.now())]

    def _in_turn(self, work: Callable[[Connection], list[Entry]], connection: Connection) -> list[Entry]:
        """A change, knowing all that others have changed before it."""
        changes.take_turn(connection)
        _, others = changes.since(connection, self._seen)
        for entry in others:
            self.directory.put(entry)
        entries = work(connection)
        changes.note(connection, entries)
        return entries  # our own come again with the next look, which changes nothing

    # --- a start -------------------------------------------------------------------------------------------------

    def _set_up(self, connection: Connection, *, take_over: bool) -> Directory:
        if self.several:
            changes.take_turn(connection)
        migrate(connection, installation_of(self.settings.home) if self.several else "")
        now = self.clock.now()
        if self.several:
            changes.check_secret(connection, self.hasher)
        if take_over:
            _take_over_plans(connection, self.settings.plans, now)
            _take_over_prices(connection, self.settings.prices, "file", now)
        if take_over or connection.execute(select(prices.c.id)).first() is None:
            _take_over_prices(connection, _default_prices(self.settings.models), "default", now)
        if take_over:
            likes = likes_of(self.settings)
            follow_likes(connection, likes, now, gone=set() if self.several else all_likes(connection) - likes.keys())
            self._liked = set(likes)
        if self.several:
            self._seen = changes.note(connection, None) if take_over else changes.last(connection)
        return Directory.load(connection)

    def follow(self, settings: Settings, keep: Collection[str] = ()) -> None:
        """Plans and prices as another load of the configuration has them; those of the file that are gone are retired,
        but for prices of the models in `keep`. There is no moment without a price: new ones are known before old ones
        are retired. Waits for the disk; raises `LedgerUnavailable` with nothing changed."""
        now, likes = self.clock.now(), likes_of(settings)
        gone = self._liked - likes.keys() - set(keep)  # others' models are other installations'

        def work(connection: Connection) -> list[Entry]:
            _take_over_plans(connection, settings.plans, now)
            _take_over_prices(connection, settings.prices, "file", now, keep)
            _take_over_prices(connection, _default_prices(settings.models), "default", now, keep)
            follow_likes(connection, likes, now, gone=gone)
            found = [entry_of(table, row) for table in (plans, prices) for row in connection.execute(select(table))]
            return sorted(found, key=lambda entry: getattr(entry, "retired_at", None) is not None)

        self.change(work)
        self._liked = (self._liked - gone) | likes.keys()

    def make_defaults(self) -> None:
        """The organisation and project of a first start, where it has not been: for work before any server ran."""
        now = self.clock.now()

        def work(connection: Connection) -> list[Entry]:
            self._default_project(connection, now)
            return self._default_entries(connection)

        if not self.directory.projects:
            self.change(work)

    def admit_first_key(self, key: str, *, from_environment: bool) -> None:
        """Make the server's own key known, with every scope, in the default project. One that was revoked stays so.

        A key from the environment replaces the one that came from there before.
        """
        digest, now = self.hasher.digest(key), self.clock.now()
        known = self.directory.caller(digest)
        name = ENVIRONMENT_KEY if from_environment else FIRST_KEY

        def work(connection: Connection) -> list[Entry]:
            project = self._default_project(connection, now)
            entries: list[Entry] = []
            if from_environment:
                entries += _revoke_others(connection, project.id, digest, now)
            if known is None:
                entries.append(_first_key(connection, project.id, name, key, digest, now))
            return [*self._default_entries(connection), *entries]

        if known is None or from_environment:
            self.change(work)
        if known is not None and known.key.revoked_at is not None:
            whose = "INTERLACE_API_KEY holds" if from_environment else "The home folder's file `key` holds"
            mend = "Choose a new one." if from_environment else "Remove the file, and the next start makes a new one."
            log.warning("%s a key that was revoked or replaced, so it opens nothing. %s", whose, mend)

    def _default_project(self, connection: Connection, now: int) -> Project:
        organisation = row_named(connection, organisations, DEFAULT_ORGANISATION)
        if organisation is None:
            organisation = add(connection, organisations, name=DEFAULT_ORGANISATION, budget_nanos=None, created_at=now)
        assert isinstance(organisation, Organisation)
        there = select(projects).where(projects.c.org_id == organisation.id, projects.c.name == DEFAULT_PROJECT)
        if row := connection.execute(there).first():
            project = entry_of(projects, row)
        else:
            values = {"org_id": organisation.id, "name": DEFAULT_PROJECT, "budget_nanos": None, "created_at": now}
            project = add(connection, projects, **values)
        assert isinstance(project, Project)
        return project

    def _default_entries(self, connection: Connection) -> list[Entry]:
        found = [row_named(connection, organisations, DEFAULT_ORGANISATION)]
        found += [entry_of(projects, row) for row in connection.execute(select(projects))]
        return [entry for entry in found if entry is not None]


# --- one process at a time ---------------------------------------------------------------------------------------


def lock_files(home: Path, url: URL) -> list[Path]:
    """The home's lock, and that of a SQLite file elsewhere: two homes may name one file."""
    files = [home / "ledger.lock"]
    if url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:":
        beside = Path(url.database).resolve().with_suffix(".lock")
        if beside != files[0].resolve():
            files.append(beside)
    return files


def lock_all(files: Iterable[Path]) -> list[HeldLock]:
    """All of them or none; raises `LedgerBusy` and `OSError`."""
    held: list[HeldLock] = []
    try:
        for file in files:
            lock = try_lock(file)
            if lock is None:
                raise LedgerBusy(
                    f"Another Interlace has the ledger in {file.parent} open. Stop it, or give this one another home."
                )
            held.append(lock)
    except BaseException:
        for lock in held:
            lock.release()
        raise
    return held


# --- rows --------------------------------------------------------------------------------------------------------


def new_id(prefix: str) -> str:
    """A fresh id that says what it is of: `key_…`."""
    return f"{prefix}_{secrets.token_hex(10)}"


_PREFIXES = {"organisations": "org", "projects": "proj", "plans": "plan", "api_keys": "key"}


def add(connection: Connection, table: Table, **values: Any) -> Entry:
    """Insert a row with a fresh id and return it as an entry."""
    if table is not prices:
        values["id"] = new_id(_PREFIXES[table.name])
    key = connection.execute(insert(table).values(**values)).inserted_primary_key
    assert key is not None
    return fetch(connection, table, key[0])


def alter(connection: Connection, table: Table, id: Any, **values: Any) -> Entry:
    """Change a row and return it as an entry."""
    connection.execute(update(table).where(table.c.id == id).values(**values))
    return fetch(connection, table, id)


def fetch(connection: Connection, table: Table, id: Any) -> Entry:
    """The row with that id, which is there."""
    return entry_of(table, connection.execute(select(table).where(table.c.id == id)).one())


def row_named(connection: Connection, table: Table, name: str) -> Entry | None:
    """The row with that name."""
    row = connection.execute(select(table).where(table.c.name == name)).first()
    return None if row is None else entry_of(table, row)


def _first_key(connection: Connection, project_id: str, name: str, key: str, digest: bytes, now: int) -> Entry:
    return add(
        connection,
        api_keys,
        project_id=project_id,
        plan_id=None,
        name=name,
        digest=digest,
        hint=hint_of(key),
        scopes=json.dumps(SCOPES),
        created_at=now,
    )


def _revoke_others(connection: Connection, project_id: str, digest: bytes, now: int) -> list[Entry]:
    earlier = select(api_keys.c.id).where(
        api_keys.c.project_id == project_id,
        api_keys.c.name == ENVIRONMENT_KEY,
        api_keys.c.digest != digest,
        api_keys.c.revoked_at.is_(None),
    )
    return [alter(connection, api_keys, id, revoked_at=now) for id in list(connection.scalars(earlier))]


# --- what the file names -----------------------------------------------------------------------------------------


def _take_over_plans(connection: Connection, wanted: Iterable[PlanSettings], now: int) -> None:
    """Plans of the file as the file has them; those it has no more are retired: keys on them keep their limits."""
    named = {plan.name: plan for plan in wanted}
    for row in connection.execute(select(plans).where(plans.c.source == "file", plans.c.retired_at.is_(None))):
        if row.name not in named:
            alter(connection, plans, row.id, retired_at=now)
    for plan in named.values():
        values: dict[str, Any] = {
            "rpm": plan.rpm,
            "tpm": plan.tpm,
            "concurrency": plan.concurrency,
            "budget_nanos": plan.budget_usd,
            "priority": plan.priority,
            "default_max_tokens": plan.default_max_tokens,
            "largest_max_tokens": plan.largest_max_tokens,
            "models": None if plan.models is None else json.dumps(plan.models),
            "source": "file",
            "retired_at": None,
        }
        if (there := row_named(connection, plans, plan.name)) is None:
            add(connection, plans, name=plan.name, created_at=now, **values)
        else:
            assert isinstance(there, Plan)
            alter(connection, plans, there.id, **values)


def _take_over_prices(
    connection: Connection, wanted: Iterable[PriceSettings], source: str, now: int, keep: Collection[str] = ()
) -> None:
    """Prices that are new are added; those that the file has no more, or otherwise, are retired, never changed; not
    those of the models in `keep`."""
    rows = [_price_row(price) for price in wanted]
    there = select(prices).where(prices.c.source == source, prices.c.retired_at.is_(None))
    for row in connection.execute(there).all():
        values = {name: getattr(row, name) for name in _PRICE_COLUMNS}
        if values in rows:
            rows.remove(values)
        elif row.model not in keep:
            connection.execute(update(prices).where(prices.c.id == row.id).values(retired_at=now))
    for values in rows:
        add(connection, prices, source=source, recorded_at=now, **values)


_PRICE_COLUMNS = ("model", "since", *KINDS, "request", "batch_percent")


def _price_row(price: PriceSettings) -> dict[str, Any]:
    values: dict[str, Any] = {kind: getattr(price.usd_per_million, kind) for kind in KINDS}
    return values | {
        "model": price.model,
        "since": price.since,
        "request": price.usd_per_request,
        "batch_percent": price.batch_percent,
    }


def _default_prices(models: Iterable[ModelSettings]) -> Iterable[PriceSettings]:
    """The checkpoints of our catalogue, under whatever name they are served, cost nothing until somebody says
    otherwise, as `priced_as` does: zero, written down."""
    free = PerMillion(prompt=Nanos(0), completion=Nanos(0))
    known = known_models()
    local = [model for model in models if model.engine == "local" and not model.priced_as]
    renamed = [model.name for model in local if model.checkpoint in known]
    names = dict.fromkeys([*known, *renamed])
    return [PriceSettings(model=name, since=Micros(0), usd_per_million=free) for name in names]
