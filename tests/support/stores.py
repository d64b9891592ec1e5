"""The databases that tests run on for real: SQLite, and a PostgreSQL server that is started here; and Redis.

Fixture `store` runs a test once on each database: the helpers that open a ledger ask `ledger_url` which a home's is.
One PostgreSQL server and one Redis for each xdist worker, started when first asked for, synced like a real one, and
gone with the worker. A fresh database is a copy of one that is migrated already; PostgreSQL's is ordered by a
language's rules and not by codes, so that a query that forgets to say its order fails.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from filelock import FileLock

from interlace.config import LedgerSettings, Settings
from interlace.ledger.database import sqlite_url
from interlace.ledger.migrations import migrate
from interlace.ledger.store import Store
from tests.support.serving import free_port

REQUIRED = os.environ.get("INTERLACE_TEST_STORES") == "required"  # as in CI: what is missing fails
ROLE = "interlace"  # owns its databases, and may do nothing else
PATIENCE_SECONDS = 60.0

_names = itertools.count()


# --- which database a ledger is in -------------------------------------------------------------------------------

_choose: Callable[[Path], str] = lambda _: ""  # noqa: E731 - replaced while a test runs on PostgreSQL


def ledger_url(home: Path) -> str:
    """`ledger.url` of that home in the test that runs; empty: SQLite, in the home."""
    return _choose(home)


def ledger_settings(home: Path, settings: LedgerSettings | None = None) -> LedgerSettings:
    """The same as settings, unless these name a database themselves."""
    settings = settings or LedgerSettings()
    if settings.url or not (url := ledger_url(home)):
        return settings
    return dataclasses.replace(settings, url=url)


def _on_each(request: pytest.FixtureRequest) -> Iterator[str]:
    """The test runs once on each database. Every home in it has one of its own."""
    if request.param == "postgresql":
        with on_postgresql(request.getfixturevalue("postgresql")):
            yield request.param
    else:
        yield request.param


def store_fixture(*marks: pytest.MarkDecorator, scope: Any = "function", sqlite: bool = True) -> Any:
    """The fixture, with marks of the tests on PostgreSQL: a module or folder may leave them to the night."""
    params = [*(["sqlite"] if sqlite else []), pytest.param("postgresql", marks=marks)]
    return pytest.fixture(_on_each, params=params, scope=scope)


store = store_fixture()
module_store = store_fixture(pytest.mark.nightly, scope="module")  # for a gateway that a module's tests share
on_both = pytest.mark.parametrize("store", ["sqlite", "postgresql"], indirect=True)
"""Of a test that is on PostgreSQL by day, in a module that leaves that to the night."""


only_sqlite = pytest.mark.parametrize("store", ["sqlite"], indirect=True)
only_postgresql = pytest.mark.parametrize("store", ["postgresql"], indirect=True)
"""Of a test in a module that asks for `store`, and is about that one."""


def placed(settings: Settings) -> Settings:
    """The same settings, with the database of the test that runs. In SQLite it is a copy of one that is migrated
    already, as in PostgreSQL, where the home has none yet: migrating takes longer than most tests do."""
    settings = dataclasses.replace(settings, ledger=ledger_settings(settings.home, settings.ledger))
    file = settings.home / "ledger.db"
    if not settings.ledger.url and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_migrated())
        file.chmod(0o600)
    return settings


@functools.cache
def _migrated() -> bytes:
    """The file of a SQLite ledger in which nothing has been written."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ledger.db"
        with contextlib.closing(Store(sqlite_url(file))) as opened, opened.engine.begin() as connection:
            migrate(connection)
        assert [path.name for path in file.parent.iterdir()] == [file.name], "all of it is in the file"
        return file.read_bytes()


@contextlib.contextmanager
def on_postgresql(server: PostgreSQL) -> Iterator[None]:
    """Ledgers opened meanwhile are on that server; their databases are dropped at the end."""
    global _choose  # noqa: PLW0603 - one test at a time runs in a process
    homes: dict[Path, str] = {}

    def choose(home: Path) -> str:
        home = home.resolve()
        if home not in homes:
            homes[home] = server.fresh()
        return homes[home]

    before, _choose = _choose, choose
    try:
        yield
    finally:
        _choose = before
        server.recover()
        for url in homes.values():
            server.drop(url)


# --- PostgreSQL --------------------------------------------------------------------------------------------------


def _binaries() -> Path | None:
    """The folder of PostgreSQL's programs; Debian puts them out of the way of PATH."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    there = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return there[-1].parent if there else None


@dataclass
class PostgreSQL:
    """A server on loopback, in a folder of its own, that can be stopped, killed and started again."""

    folder: Path
    binaries: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    options: dict[str, str] = field(default_factory=dict)  # of its configuration, further ones

    def make(self) -> None:
        """Its folder, role and the database that others are copies of."""
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        initdb = [
            self.binaries / "initdb",
            "-A",
            "trust",
            "-U",
            "postgres",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
        ]
        options = ["--locale-provider=icu", "--icu-locale=en-US", "-D", self.folder / "data"]
        subprocess.run(self._as_postgres(*initdb, *options), check=True, capture_output=True, cwd="/")
        self.start()
        self.sql(f"CREATE ROLE {ROLE} LOGIN", f"CREATE DATABASE migrated OWNER {ROLE}")
        with contextlib.closing(Store(self.url("migrated"))) as opened, opened.engine.begin() as connection:
            migrate(connection)

    def url(self, database: str) -> str:
        """Of one database, for the role that owns it."""
        return f"postgresql://{ROLE}@127.0.0.1:{self.port}/{database}"

    def sql(self, *statements: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run statements as the superuser, each by itself; the rows of the last."""
        rows: list[tuple[Any, ...]] = []
        where = f"postgresql://postgres@127.0.0.1:{self.port}/{database}"
        with contextlib.closing(psycopg.connect(where, autocommit=True)) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
                rows = cursor.fetchall() if cursor.description else []
        return rows

    def fresh(self, *, migrated: bool = True) -> str:
        """The URL of a new database."""
        code = None if self.process is None else self.process.poll()
        assert code is None, f"PostgreSQL has ended with {code}:\n{(self.folder / 'log').read_text()[-4000:]}"
        name = f"ledger_{next(_names)}"
        self.sql(f"CREATE DATABASE {name} OWNER {ROLE} TEMPLATE {'migrated' if migrated else 'template1'}")
        return self.url(name)

    def drop(self, url: str) -> None:
        """Remove a database, whoever is connected to it."""
        self.sql(f"DROP DATABASE IF EXISTS {url.rpartition('/')[2]} WITH (FORCE)")

    def start(self) -> None:
        """Begin to answer, on the same port as ever."""
        assert self.process is None
        values = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": 100,
            **self.options,
        }
        options = [word for name, value in values.items() for word in ("-c", f"{name}={value}")]
        command = [self.binaries / "postgres", "-D", self.folder / "data", "-p", str(self.port), *options]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self._as_postgres(*command), cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        _until(self._answers, self.process, self.folder / "log")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT cuts connections and writes everything down, SIGQUIT is a crash."""
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(how)
            try:
                process.wait(PATIENCE_SECONDS)
            finally:
                process.kill()
                process.wait()

    def back_up(self, folder: Path) -> None:
        """A copy of all its files while it runs, from which another can be started where the log goes on."""
        command = [self.binaries / "pg_basebackup", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres"]
        command += ["--checkpoint=fast", "--wal-method=none", "--no-sync", "-D", folder]
        subprocess.run(self._as_postgres(*command), check=True, capture_output=True, cwd="/")

    def cut(self, url: str) -> int:
        """End all sessions of a database; how many."""
        name = url.rpartition("/")[2]
        query = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        return len(self.sql(query))

    def read_only(self, on: bool) -> None:
        """Whether transactions may write, of sessions that are open too."""
        self.sql(f"ALTER SYSTEM SET default_transaction_read_only = {'on' if on else 'off'}", "SELECT pg_reload_conf()")
        _until(lambda: self.sql("SHOW default_transaction_read_only") == [("on" if on else "off",)], self.process)

    def recover(self) -> None:
        """As at first, whatever a test did to it."""
        if self.process is None:
            self.start()
        if self.sql("SHOW default_transaction_read_only") != [("off",)]:
            self.read_only(False)

    def _answers(self) -> bool:
        try:
            return self.sql("SELECT 1") == [(1,)]
        except psycopg.OperationalError:
            return False

    def _as_postgres(self, *command: object) -> list[str]:
        """It refuses to run as root; and it must not outlive us."""
        words = [str(word) for word in command]
        if os.geteuid() != 0:
            return words
        become = ["--reuid=postgres", "--regid=postgres", "--init-groups"]
        return ["setpriv", *become, "--pdeathsig=SIGQUIT", *words]


@contextlib.contextmanager
def postgresql_server(**options: str) -> Iterator[PostgreSQL]:
    """A running PostgreSQL server in a folder of its own."""
    binaries = _binaries()
    if binaries is None or (os.geteuid() == 0 and shutil.which("setpriv") is None):
        _missing("PostgreSQL", "postgresql")
    with tempfile.TemporaryDirectory(prefix="interlace-postgresql-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        server = PostgreSQL(Path(folder), binaries, options=options)
        try:
            with FileLock("/tmp/interlace-test-postgresql.lock"):  # making one keeps a core busy for a second
                server.make()
            yield server
        finally:
            server.stop(signal.SIGQUIT)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A running PostgreSQL server, this worker's own. Who stops it, or makes it read-only, need not mend it."""
    with postgresql_server() as server:
        yield server


# --- Redis -------------------------------------------------------------------------------------------------------


@dataclass
class Redis:
    """A Redis server on loopback, whose data is gone with it."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    words: tuple[str, ...] = ()  # of its command line, further ones

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Begin to answer, empty."""
        assert self.process is None
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--dir", str(self.folder), *self.words], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        _until(self._answers, self.process, self.folder / "log")

    def stop(self) -> None:
        """End it at once."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()

    def pause(self) -> None:
        """Let it answer nobody; the system still takes connections for it."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """After a pause."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def client(self) -> Iterator[redis.Redis]:
        """A connection."""
        with contextlib.closing(redis.Redis.from_url(self.url)) as client:
            yield client

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """A running Redis server, this worker's own."""
    if shutil.which("redis-server") is None:
        _missing("Redis", "redis-server")
    with tempfile.TemporaryDirectory(prefix="interlace-redis-") as folder:
        server = Redis(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.stop()


# --- small things ------------------------------------------------------------------------------------------------


def _missing(what: str, package: str) -> None:
    message = f"{what} is not installed. On Debian and Ubuntu: apt-get install {package} (make test does it when root)"
    if REQUIRED:
        pytest.fail(message)
    pytest.skip(message)


def _until(condition: Callable[[], bool], process: subprocess.Popen[bytes] | None, log: Path | None = None) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        ended = process is None or process.poll() is not None
        said = log.read_text() if log else ""
        assert not ended, f"the server ended:\n{said}"
        assert time.monotonic() < deadline, f"the server does not answer:\n{said}"
        time.sleep(0.02)
