"""What the load says of a gateway is true: every request counted, CPU of all processes, a ledger that lacks none."""

import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from rich.console import Console

from benchmarks import gateways, wrk
from benchmarks.gateways import MODEL, Gateway
from benchmarks.peers.stamps import LENGTH, stamp, stamps
from benchmarks.processes import Cores, cores, free_port, running
from benchmarks.profiling import top
from benchmarks.tenants import Amount, fill
from benchmarks.worker import ContestantFailed, Worker
from interlace.config import PerMillion, PriceSettings, Settings
from interlace.ledger import Registry
from interlace.ledger.audit import audit
from interlace.money import Micros, Nanos

CONSOLE = Console(quiet=True)
HAS_TOOLS = (shutil.which("nginx") and shutil.which("wrk")) or (os.geteuid() == 0 and shutil.which("apt-get"))
needs_tools = pytest.mark.skipif(not HAS_TOOLS, reason="nginx and wrk are not installed, and cannot be")


@pytest.fixture
def served() -> Iterator[Gateway]:
    """The provider itself, taken for a gateway."""
    port = free_port()
    with gateways.nginx_serving("provider", port, wrk.provider_place(), cores().others, CONSOLE) as started:
        yield Gateway("nginx", port, [{}], started)


@needs_tools
def test_every_request_that_began_is_answered_and_counted(served: Gateway):
    """Were any cut off at the end, a ledger could not be compared with the answers to the last request."""
    told = wrk.load(served, 0.3, cores(), CONSOLE, connections=7)
    assert told["answered"] >= 7  # each of the connections has one, however busy the machine
    assert 0 < told["rate"] <= told["answered"] / 0.3
    assert 0 < told["p50"] <= told["p99"]


@needs_tools
def test_a_slow_answer_is_waited_for():
    """Were it cut off, the slowest would have the least to answer for. This provider needs a second for each answer."""
    port, place = free_port(), wrk.provider_place().replace("{ ", "{ limit_rate 400; ", 1)
    with gateways.nginx_serving("provider", port, place, cores().others, CONSOLE) as started:
        told = wrk.load(Gateway("slow", port, [{}], started), 0.1, cores(), CONSOLE, connections=3)
    assert told["answered"] == 3
    assert told["p50"] > 900


@needs_tools
def test_answers_that_the_ledger_lacks_fail_the_measurement(served: Gateway, tmp_path: Path):
    """A gateway that forgets what it answered would be the quickest."""
    ledger = tmp_path / "ledger.db"
    with sqlite3.connect(ledger) as connection:
        connection.execute("CREATE TABLE usage_events (outcome TEXT)")
    forgetful = Gateway("forgetful", served.port, served.callers, served.running, ledger)
    with pytest.raises(ContestantFailed, match="and recorded 0"):
        wrk.load(forgetful, 0.1, cores(), CONSOLE)


@needs_tools
def test_refusals_fail_the_measurement():
    """Errors are answered quickly too."""
    port, place = free_port(), "location / { return 503; } location = /alive { return 200; }"
    with gateways.nginx_serving("provider", port, place, cores().others, CONSOLE) as started:
        refusing = Gateway("refusing", port, [{}], started)
        with pytest.raises(ContestantFailed, match="not every request was answered"):
            wrk.load(refusing, 0.1, cores(), CONSOLE)


@needs_tools
def test_interlace_answers_the_load_with_all_its_parts_on():
    """The configuration that is measured works, and each answer is in the ledger."""
    port = free_port()
    with (
        gateways.nginx_serving("provider", port, wrk.provider_place(), cores().others, CONSOLE),
        gateways.interlace()(port, cores(), CONSOLE) as gateway,
    ):
        told = wrk.load(gateway, 0.5, cores(), CONSOLE)
        assert gateway.outcomes() == {"finished": told["answered"]}


def test_cpu_is_that_of_children_too_living_or_ended():
    """A gateway that works in other processes is charged for them."""
    burn = "import time\nwhile time.process_time() < 0.4: pass"
    script = (
        "import subprocess, sys, time\n"
        f"subprocess.run([sys.executable, '-c', {burn!r}])\n"
        f"subprocess.Popen([sys.executable, '-c', {burn + chr(10) + 'time.sleep(60)'!r}], start_new_session=True)\n"
        "time.sleep(60)"
    )
    with running("burner", [sys.executable, "-c", script]) as started:
        deadline = time.monotonic() + 30
        while started.cpu_seconds() < 0.75 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert 0.75 <= started.cpu_seconds() < 3
        members = [psutil.Process(pid) for pid in started.members()]
        assert len(members) == 2
        assert started.memory_bytes() > 2**20
    deadline = time.monotonic() + 10
    while (alive := [one for one in members if _lives(one)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_process_that_ends_at_its_start_says_why():
    """Its last words are in the error, not in a file that is gone."""
    with (
        running("broken", [sys.executable, "-c", "raise SystemExit('no such model')"]) as started,
        pytest.raises(ContestantFailed, match="no such model"),
    ):
        started.wait_for("http://127.0.0.1:9/")


def test_with_one_core_the_report_says_that_all_share_it():
    """Figures from such a machine are not comparable."""
    assert "say little" in Cores(frozenset({0}), frozenset({0})).text()
    assert Cores(frozenset({3}), frozenset({0, 1})).text() == "gateway on core 3, all others on 0,1"


def test_bulk_rows_make_a_ledger_that_adds_up(tmp_path: Path):
    """Growth is measured on what a ledger could have become by itself."""
    price = PerMillion(prompt=Nanos(150_000_000), completion=Nanos(600_000_000))
    settings = Settings(home=tmp_path, prices=(PriceSettings(model=MODEL, since=Micros(0), usd_per_million=price),))
    registry = Registry.open(settings, {})
    keys = fill(registry, Amount(keys=20, organisations=6, events=500), MODEL)
    registry.close()
    assert len(set(keys)) == 20
    registry = Registry.open(settings, {})
    try:
        assert registry.store.read(lambda connection: list(audit(connection))) == []
        caller = registry.directory.caller(registry.hasher.digest(keys[7]))
        assert caller is not None
        assert (caller.key.name, caller.organisation.name, caller.plan.name) == ("key-7", "org-1", "bench")
    finally:
        registry.close()
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        assert connection.execute("SELECT count(*), count(DISTINCT key_id) FROM usage_events").fetchone() == (500, 20)


def test_a_stamp_is_the_moment_it_was_made_and_no_number():
    """Guards hold back what may become a card's number."""
    before = time.monotonic_ns() // 1000
    text = stamp()
    assert len(text) == LENGTH
    assert not any(character.isdigit() for character in text)
    (found,) = stamps(f'data: {{"content":"{text} "}}'.encode())
    assert before <= found <= time.monotonic_ns() // 1000
    assert stamps(text[:-1].encode()) == []


def test_a_profile_counts_each_function_once_a_stack_whatever_its_lines():
    """Recursion and other lines of one function are one function."""
    table = top(["process 1:python;a (x.py:1);b (y.py:2);a (x.py:3) 3", "a (x.py:1) 1", "process 1:python 5"])
    assert "| 100.0 | 100.0 | `a (x.py)` |" in table
    assert "process" not in table


@pytest.mark.parametrize("kind", ["bare", "full"])
def test_the_gateways_of_the_ledger_part_answer(kind: str):
    """Made of the product's own parts by hand, they fall behind the product unnoticed until somebody measures."""
    with Worker(kind, [sys.executable, "-m", "benchmarks.peers.gateway", kind, "2"]) as gateway:
        gateway.wait_until_loaded()
        body = {"model": gateway.about["model"], "messages": [{"role": "user", "content": "hello"}]}
        url = f"http://127.0.0.1:{gateway.about['port']}/v1/chat/completions"
        headers = {"authorization": f"Bearer {gateway.about['key']}"}
        told = httpx.post(url, json=body, headers=headers, trust_env=False, timeout=60)
    assert (told.status_code, told.json()["usage"]["completion_tokens"]) == (200, 16)
