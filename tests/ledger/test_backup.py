"""Backups of the ledger, taken while a gateway writes, and the way back to them."""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path

import httpx
import pytest

from tests.support.billing import ANSWER_NANOS, Asked, Books, billing, priced, tenants
from tests.support.ledgers import open_ledger, record, used
from tests.support.provider import running_provider
from tests.support.served import Served, ask
from tests.support.serving import environment
from tests.support.tenants import tenant

COMMAND = (sys.executable, "-m", "interlace")
FAST = "instant:3"
BODY = {"model": FAST, "messages": [{"role": "user", "content": "hello"}]}


def run(home: Path, *words: str, **more: Callable[[], None]) -> subprocess.CompletedProcess[str]:
    """`interlace ledger WORDS`."""
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [*COMMAND, "ledger", *words], env=environment(home), cwd=home, capture_output=True, text=True, check=False,
        timeout=60, **more,
    )  # fmt: skip


def checked(home: Path) -> int:
    """How many events the ledger has, which must be right."""
    done = run(home, "check", "--json")
    assert done.returncode == 0, done.stdout
    return int(json.loads(done.stdout)["events"])


def names_in(folder: Path) -> list[str]:
    """What lies there."""
    return sorted(path.name for path in folder.iterdir())


def events(file: Path) -> int:
    """How many it has."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        return int(database.execute("SELECT COUNT(*) FROM usage_events").fetchone()[0])


async def test_a_backup_under_load_is_one_moment_of_the_ledger(tmp_path: Path) -> None:
    """Were it torn, or missing what callers had been told is done, the auditor or the count would say so; and with the
    secret beside it, a server elsewhere knows the same keys and goes on."""
    done = 0
    elsewhere = tmp_path / "elsewhere"
    with running_provider() as provider:
        with billing(tmp_path, provider, [FAST], command=COMMAND) as there:
            async with there.callers() as client:
                over = asyncio.Event()

                async def steady() -> None:
                    nonlocal done
                    while not over.is_set():
                        assert (await ask(client, BODY)).status == 200
                        done += 1

                callers = [asyncio.create_task(steady()) for _ in range(4)]
                counts: list[tuple[int, Path]] = []
                for number in range(3):
                    while done < 20 * (number + 1):
                        await asyncio.sleep(0.01)
                    file, before = tmp_path / f"backup-{number}.db", done
                    made = await asyncio.to_thread(run, tmp_path / "home", "backup", str(file))
                    assert made.returncode == 0, made.stderr
                    assert "secret" in made.stderr
                    counts.append((before, file))
                over.set()
                await asyncio.gather(*callers)
            assert not list(tmp_path.glob(".backup*"))
        for number, (before, file) in enumerate(counts):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            home = elsewhere / str(number) / "home"
            home.mkdir(parents=True)
            restored = run(home, "restore", str(file))
            assert (restored.returncode, "every sum agrees" in restored.stdout) == (0, True)
            assert before <= checked(home) <= done
        shutil.copy(tmp_path / "home/secret", home / "secret")
        with billing(home.parent, provider, [FAST], command=COMMAND) as again:
            answer = await ask_once(again.url, there.key)
            assert answer == 200
        assert checked(home) == events(counts[-1][1]) + 1


async def ask_once(url: str, key: str) -> int:
    """The status of one chat."""
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as client:
        return (await ask(client, BODY)).status


def test_restoring_to_a_point(tmp_path: Path) -> None:
    """What came after the backup is gone from the ledger and from its balances, and kept beside it."""
    home, file = tmp_path / "home", tmp_path / "backup.db"
    with open_ledger(home) as registry:
        who = tenant(registry)
        record(registry, used(registry, who))
        assert run(home, "backup", str(file)).returncode == 0
        record(registry, used(registry, who), used(registry, who))
        busy = run(home, "restore", str(file))
        assert busy.returncode == 2
        assert "Stop it" in busy.stderr
    assert checked(home) == 3
    done = run(home, "restore", str(file))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("The record is right: 1 events, every sum agrees.\n")
    (aside,) = home.glob("ledger.db.replaced-*")
    assert (events(aside), checked(home)) == (3, 1)
    with open_ledger(home) as registry:
        record(registry, used(registry, who))
    assert checked(home) == 2
    assert run(home, "restore", str(aside)).returncode == 0, "a step too far is taken back the same way"
    assert checked(home) == 3


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same home", "another"])
async def test_what_workers_held_at_the_backup_can_be_spent(tmp_path: Path, elsewhere: bool) -> None:
    """Slices of workers that are no more would be lost to the budget for good, and to nobody's notice."""
    cost, enough = 20 * ANSWER_NANOS, 37
    body = {"model": "m", "max_tokens": 20}
    with running_provider() as provider:
        (who,) = tenants(tmp_path, {"org_budget": enough * cost})
        model = {"m": "instant:40"}

        def gateway(folder: Path) -> AbstractContextManager[Served]:
            return billing(folder, provider, model, prices=[priced("m", prompt=0)], workers=2)

        with gateway(tmp_path) as there:
            async with there.callers() as client:
                assert (await Asked(body, who).run(client)).whole
            backup = tmp_path / "backup.db"
            assert run(tmp_path / "home", "backup", str(backup)).returncode == 0
            for process in (there.process, there.coordinator(), *there.workers().values()):
                assert process is not None
                process.kill()
        with closing(sqlite3.connect(backup)) as database:
            assert database.execute("SELECT sum(nanos) FROM leases WHERE scope = 'org'").fetchone()[0] >= cost
        folder = tmp_path / "elsewhere" if elsewhere else tmp_path
        (folder / "home").mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "home/secret", tmp_path / "secret")
        restored = run(folder / "home", "restore", str(backup))
        assert (restored.returncode, "every sum agrees" in restored.stdout) == (0, True)
        shutil.copy(tmp_path / "secret", folder / "home/secret")
        with gateway(folder) as there:
            async with there.callers() as client:
                every = await asyncio.gather(*(Asked(body, who).run(client) for _ in range(enough + 3)))
        refused = (429, "insufficient_quota")
        assert Counter(asked.refusal for asked in every) == {(200, ""): enough - 1, refused: 4}
    books = Books(folder)
    assert books.spent(who) == enough * cost
    books.check()
    assert checked(folder / "home") == enough


def test_a_ledger_whose_log_was_left_behind_is_replaced_whole(tmp_path: Path) -> None:
    """After a crash the old log lies there: played into the restored ledger, it would ruin it."""
    home, file = tmp_path / "home", tmp_path / "backup.db"
    with open_ledger(home) as registry:
        who = tenant(registry)
        record(registry, used(registry, who))
        assert run(home, "backup", str(file)).returncode == 0
        record(registry, used(registry, who), used(registry, who))
        for name in ("ledger.db", "ledger.db-wal"):
            shutil.copy(home / name, tmp_path / name)
    for name in ("ledger.db", "ledger.db-wal"):
        shutil.copy(tmp_path / name, home / name)
    assert (home / "ledger.db-wal").stat().st_size > 0
    assert run(home, "restore", str(file)).returncode == 0
    assert checked(home) == 1
    (aside,) = (path for path in home.glob("ledger.db.replaced-*") if not path.name.endswith(("-wal", "-shm")))
    assert events(aside) == 3


def _rubbish(file: Path) -> None:
    file.write_bytes(b"nothing at all " * 500)


def _torn(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 9000] = b"\xff" * 9000
    file.write_bytes(content)


def _another(file: Path) -> None:
    file.unlink()
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE songs (name)")


def _newer(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
        database.execute("UPDATE facts SET value = '9999' WHERE name = 'oldest'")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(_rubbish, "cannot be copied"), (_torn, "is damaged"), (_another, "no ledger"), (_newer, "newer"),
     (Path.unlink, "no backup")],
)  # fmt: skip
def test_what_is_no_backup_replaces_nothing(spoil: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    """A file that cannot be served from must leave the ledger as it was, to the byte."""
    home, file = tmp_path / "home", tmp_path / "backup.db"
    with open_ledger(home) as registry:
        record(registry, used(registry, tenant(registry)))
        assert run(home, "backup", str(file)).returncode == 0
    before, names = (home / "ledger.db").read_bytes(), names_in(home)
    spoil(file)
    done = run(home, "restore", str(file))
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert ((home / "ledger.db").read_bytes(), names_in(home)) == (before, names)


def test_a_backup_replaces_nothing_and_leaves_nothing_half_made(tmp_path: Path) -> None:
    """A name that is taken, a folder that is not there, a disk that is full: told in a line, and no file stays."""
    home, file = tmp_path / "home", tmp_path / "backup.db"
    with open_ledger(home) as registry:
        record(registry, used(registry, tenant(registry)))
    full = run(home, "backup", str(file), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)))
    assert full.returncode in (1, 2), full.stdout
    assert str(tmp_path) in full.stderr
    assert names_in(tmp_path) == ["home"]
    assert run(home, "backup", str(file)).returncode == 0
    before = file.read_bytes()
    taken = run(home, "backup", str(file))
    assert (taken.returncode, "exists already" in taken.stderr) == (2, True)
    assert file.read_bytes() == before
    assert "cannot be written" in run(home, "backup", str(tmp_path / "nowhere/backup.db")).stderr
    assert "There is no ledger" in run(tmp_path / "fresh", "backup", str(tmp_path / "other.db")).stderr
