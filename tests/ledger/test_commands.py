"""`interlace ledger check|export` as processes: beside a running server, without one, and on ledgers that are wrong."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from interlace.config import Settings
from interlace.errors import ConfigError
from interlace.ledger.reading import reading
from tests.support.ledgers import open_ledger, record, tamper, used
from tests.support.serving import environment
from tests.support.stores import ledger_url, only_sqlite, placed
from tests.support.tenants import tenant

pytestmark = pytest.mark.usefixtures("store")


def run(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`interlace ledger WORDS`."""
    env = environment(home)
    if url := ledger_url(home):
        config = home.with_name(f"{home.name}.yaml")
        config.write_text(f"ledger: {{url: '{url}'}}\n")
        env["INTERLACE_CONFIG"] = str(config)
    return subprocess.run(
        [sys.executable, "-m", "interlace", "ledger", *words], env=env, cwd=home, capture_output=True,
        text=True, check=False, timeout=60,
    )  # fmt: skip


def test_a_ledger_that_is_open_is_checked_and_exported(tmp_path: Path) -> None:
    """While a server has it, and events that are only in its write-ahead log count; nothing of it is touched."""
    with open_ledger(tmp_path) as registry:
        record(registry, used(registry, tenant(registry)), used(registry, tenant(registry)))
        done = run(tmp_path, "check")
        assert (done.returncode, done.stdout, done.stderr) == (
            0,
            "The record is right: 2 events, every sum agrees.\n",
            "",
        )
        assert len(run(tmp_path, "export", "--format", "csv", "--events").stdout.splitlines()) == 3
        record(registry, used(registry, tenant(registry)))
    assert json.loads(run(tmp_path, "check", "--json").stdout) == {
        "ok": True, "wrong": 0, "notices": 0, "events": 3, "findings": []
    }  # fmt: skip


def test_what_is_wrong_is_listed_with_its_place(tmp_path: Path) -> None:
    """Exit code 1, a line for each, and the same for programs."""
    with open_ledger(tmp_path) as registry:
        usage = used(registry, tenant(registry))
        record(registry, usage)
    tamper(registry, "UPDATE usage_events SET cost_nanos = 56")
    done = run(tmp_path, "check")
    assert done.returncode == 1
    first = done.stdout.splitlines()[0]
    assert first.startswith(f"wrong: event {usage.id}: its cost is not its tokens at price ")
    assert first.endswith(": expected 55 nano-dollars, found 56")
    places = len(done.stdout.splitlines())
    assert done.stderr == f"The record is wrong in {places} places.\n"
    told = run(tmp_path, "check", "--json")
    report = json.loads(told.stdout)
    assert (told.returncode, report["ok"], report["wrong"], len(report["findings"])) == (1, False, places, places)
    assert report["findings"][0] == {
        "severity": "wrong",
        "where": f"event {usage.id}",
        "what": report["findings"][0]["what"],
        "expected": "55 nano-dollars",
        "found": "56",
    }


def test_a_notice_alone_is_no_failure(tmp_path: Path) -> None:
    """A budget that was lowered is told of; the record is right all the same."""
    with open_ledger(tmp_path) as registry:
        record(registry, used(registry, tenant(registry, key_budget=3)))
    done = run(tmp_path, "check")
    assert done.returncode == 0
    assert "spent beyond its budget" in done.stdout


@only_sqlite
@pytest.mark.parametrize("verb", [("check",), ("export", "--format", "csv")])
def test_without_a_ledger_it_says_so_and_makes_none(tmp_path: Path, verb: tuple[str, ...]) -> None:
    """A mistyped home must not look like an empty ledger that is right."""
    done = run(tmp_path, *verb)
    assert done.returncode == 2
    assert "There is no ledger at" in done.stderr
    assert list(tmp_path.iterdir()) == []


@only_sqlite
@pytest.mark.parametrize("content", [b"", b"no database, but a text\n" * 400])
def test_a_file_that_is_no_ledger_is_wrong(tmp_path: Path, content: bytes) -> None:
    """Whatever lies there, no stack trace."""
    (tmp_path / "ledger.db").write_bytes(content)
    done = run(tmp_path, "check")
    assert done.returncode in {1, 2}
    assert "database" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_can_be_written_through_it(tmp_path: Path) -> None:
    """An auditor that could change what it audits would be none."""
    with open_ledger(tmp_path):
        pass
    with pytest.raises(ConfigError, match=r"read-?only"), reading(placed(Settings(home=tmp_path))) as connection:
        connection.exec_driver_sql("DELETE FROM prices")


def test_an_export_to_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    """It replaces what was there, belongs to its owner alone, and a failure leaves the old one."""
    with open_ledger(tmp_path) as registry:
        record(registry, used(registry, tenant(registry)))
    out = tmp_path / "bill.csv"
    out.write_text("old")
    assert run(tmp_path, "export", "--format", "csv", "--output", str(out)).returncode == 0
    assert out.read_text().startswith("day,org,project,model,requests,")
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    done = run(tmp_path, "export", "--format", "csv", "--output", str(tmp_path / "nowhere" / "bill.csv"))
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert not list(tmp_path.glob(".bill*"))


@only_sqlite
@pytest.mark.parametrize(
    "words",
    [("--format", "xml"), ("--format", "csv", "--since", "yesterday"), ("--format", "csv", "--until", "2026-13-01")],
)
def test_wrong_words_are_told(tmp_path: Path, words: tuple[str, ...]) -> None:
    """The option, the problem, the mend."""
    done = run(tmp_path, "export", *words)
    assert done.returncode == 2
    assert words[-2] in done.stderr
    assert words[-1] in done.stderr
