"""Contents on disk: whole or not there, each once, and nothing left of a crash."""

from __future__ import annotations

import hashlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from interlace.deposits import Deposits, NewFile, files
from interlace.deposits.blobs import Blobs
from interlace.errors import NotFound, PayloadTooLarge
from interlace.gateway.asking import Where
from interlace.gateway.ledger_client import perform
from interlace.ledger import Registry
from interlace.ledger.operations import OPERATIONS
from interlace.ledger.operations.tenants import ProjectNamed
from tests.support.ledgers import open_ledger
from tests.support.tenants import Tenant, tenant


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """A real ledger."""
    with open_ledger(tmp_path) as opened:
        yield opened


@pytest.fixture
def who(registry: Registry) -> Tenant:
    """A project."""
    return tenant(registry)


def on_disk(home: Path) -> set[str]:
    """Names of all contents, partial ones too."""
    return {path.name for path in (home / "files").glob("*/*")}


def put(deposits: Deposits, who: Tenant, content: bytes, most: int = 1000) -> str:
    """A file with that content; its id."""
    with deposits.files.begin() as partial:
        partial.write([content[:1], content[1:]])
        return deposits.files.add(who.project.id, NewFile("a.txt", "user_data"), partial, most, 0).id


def test_what_is_not_kept_is_gone(tmp_path: Path) -> None:
    """An upload that breaks off would fill the disk."""
    blobs = Blobs(tmp_path / "files")

    def break_off() -> None:
        with blobs.begin() as partial:
            partial.write([b"half"])
            assert len(on_disk(tmp_path)) == 1
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert on_disk(tmp_path) == set()


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may be longer than 100,000 bytes: what is beyond fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_keeps_nothing_of_what_did_not_fit(tmp_path: Path) -> None:
    """What is left of it would keep the disk full until a restart, and each further try would leave more."""
    blobs = Blobs(tmp_path / "files")

    def fill() -> None:
        with blobs.begin() as partial:
            while partial.size < 300_000:
                partial.write([b"x" * 50_001])

    with pytest.raises(OSError, match="File too large"):
        fill()
    assert on_disk(tmp_path) == set()


def test_a_start_removes_what_a_crash_left_and_nothing_else(registry: Registry, who: Tenant, tmp_path: Path) -> None:
    """Contents without a row and halves of a dead process go; files stay, and so does what is being written now."""
    dead = Deposits(registry)
    kept = put(dead, who, b"kept")
    half = dead.files.begin()
    half._file.close()
    with dead.files.begin() as orphan:
        orphan.write([b"orphan"])
        dead._shelf.blobs.keep(orphan, orphan.finish())
    assert len(on_disk(tmp_path)) == 3
    alive = Deposits(registry)
    with alive.files.begin() as now:
        alive.tidy()
        assert on_disk(tmp_path) == {hashlib.sha256(b"kept").hexdigest(), now.path.name}
        assert not half.path.exists()
    _, content = alive.files.open(who.project.id, kept)
    with content:
        assert content.read() == b"kept"


def test_a_file_that_is_too_much_leaves_no_content(registry: Registry, who: Tenant, tmp_path: Path) -> None:
    """Refused at the last moment, because another upload was quicker, it must not stay on disk; but where others have
    the same content, theirs must."""
    deposits = Deposits(registry)
    put(deposits, who, b"x" * 600)
    with pytest.raises(PayloadTooLarge):
        put(deposits, who, b"y" * 600)
    with pytest.raises(PayloadTooLarge):
        put(deposits, who, b"x" * 600)
    assert on_disk(tmp_path) == {hashlib.sha256(b"x" * 600).hexdigest()}


def test_a_file_whose_time_is_over_is_not_there(registry: Registry, who: Tenant, tmp_path: Path) -> None:
    """Not for its owner, though nobody has swept yet; and after a sweep not on disk."""
    deposits = Deposits(registry)
    with deposits.files.begin() as partial:
        partial.write([b"old"])
        old = deposits.files.add(who.project.id, NewFile("a.txt", "user_data", 3600), partial, 1000, 0)
    registry.store.write(lambda connection: connection.exec_driver_sql("UPDATE files SET expires_at = 1"))
    with pytest.raises(NotFound):
        deposits.files.get(who.project.id, old.id)
    assert deposits.files.expire() == 1
    assert on_disk(tmp_path) == set()


def test_an_erasure_without_a_server_takes_contents_too(tmp_path: Path) -> None:
    """Rows that went alone would leave what was said on disk until some server starts."""
    with open_ledger(tmp_path) as registry:
        who = tenant(registry)
        put(Deposits(registry), who, b"secret")
    assert on_disk(tmp_path)
    perform("projects.erase", {"project": who.project.id}, Where({"INTERLACE_HOME": str(tmp_path)}))
    assert on_disk(tmp_path) == set()


def test_a_file_that_arrives_while_its_project_is_erased_is_not_kept(registry: Registry, who: Tenant) -> None:
    """An upload may last for hours: what began before an erasure would stay behind it for ever."""
    deposits, new = Deposits(registry), NewFile("a.txt", "user_data")
    began = registry.clock.now()
    with deposits.files.begin() as partial:
        partial.write([b"mine"])
        OPERATIONS["projects.erase"].run(registry, ProjectNamed(project=who.project.id))
        with pytest.raises(NotFound):
            deposits.files.add(who.project.id, new, partial, 1000, began)
    assert on_disk(registry.settings.home) == set()
    with deposits.files.begin() as partial:
        partial.write([b"later"])
        assert deposits.files.add(who.project.id, new, partial, 1000, registry.clock.now())


def test_a_project_has_only_so_many_files(registry: Registry, who: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of no bytes would fill the database, whatever is left of the project's bytes."""
    monkeypatch.setattr(files, "MOST_FILES", 2)
    deposits = Deposits(registry)
    for content in (b"a", b"b"):
        put(deposits, who, content)
    with pytest.raises(PayloadTooLarge):
        put(deposits, who, b"")
