"""`interlace doctor` as a process, on installations that are really broken, one thing at a time."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from interlace.cli import app
from interlace.config import AddedModel
from interlace.models import change_added_models, pull
from tests.support.billing import billing, priced
from tests.support.certificates import Pair, pair
from tests.support.ledgers import open_ledger, record, used
from tests.support.provider import Provider, running_provider
from tests.support.served import patiently
from tests.support.serving import environment, free_port
from tests.support.stores import Redis
from tests.support.tenants import tenant
from tests.support.tiny import tiny_llama_gguf

COMMAND = (sys.executable, "-m", "interlace")
CHECKS = (
    "configuration", "home", "disk", "files", "packages", "checkpoints", "database", "drift", "clock", "redis",
    "certificate", "providers", "prices", "owners", "server",
)  # fmt: skip


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """One for all."""
    with running_provider() as running:
        yield running


@dataclass
class Place:
    """An installation: a folder with interlace.yaml and a home."""

    folder: Path
    config: dict[str, Any]

    @property
    def home(self) -> Path:
        """Its home."""
        return self.folder / "home"

    def write(self, **changes: Any) -> None:
        """interlace.yaml, changed."""
        self.config |= changes
        (self.folder / "interlace.yaml").write_text(yaml.safe_dump(self.config))

    def sql(self, statement: str) -> None:
        """Into the database, past everything."""
        with closing(sqlite3.connect(self.home / "ledger.db")) as database, database:
            database.execute(statement)

    def doctor(self, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """What is printed."""
        env = environment(self.home) | more.pop("env", {})
        return subprocess.run(
            [*COMMAND, "doctor", *words], env=env, cwd=self.folder, capture_output=True, text=True, check=False,
            timeout=100, **more,
        )  # fmt: skip

    def said(self, check: str, status: str, *words: str, **more: Any) -> str:
        """What one check says, all else being as it was: at least one finding of that status, the exit code with it,
        and something to do about it."""
        code, printed = self._examined(check, *words, **more)
        report = json.loads(printed)
        found = [one for one in report["checks"] if one["status"] == status]
        assert found, report
        assert code == (1 if any(one["status"] == "fail" for one in report["checks"]) else 0)
        assert report["ok"] is (code == 0)
        assert {one["check"] for one in report["checks"]} == {check}
        assert status == "ok" or all(one["mend"] for one in found)
        return "; ".join(f"{one['what']} -> {one['mend']}" for one in found)

    def _examined(self, check: str, *words: str, **more: Any) -> tuple[int, str]:
        """In a process of its own where that matters, else in ours, which has everything loaded."""
        if more:
            done = self.doctor("--json", "--only", check, *words, **more)
            assert done.stdout, done.stderr
            return done.returncode, done.stdout
        with contextlib.chdir(self.folder), pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "environ", environment(self.home))
            result = CliRunner().invoke(app, ["doctor", "--json", "--only", check, *words])
        return result.exit_code, result.stdout


@pytest.fixture
def place(tmp_path: Path, provider: Provider) -> Place:
    """An installation that has served before and does not now: one model of a provider, one event in the record."""
    model = {"name": "m", "engine": "openai", "base_url": provider.url, "model": "able"}
    there = Place(tmp_path, {})
    there.write(port=free_port(), models=[model], prices=[priced("m")])
    with open_ledger(there.home) as registry:
        record(registry, used(registry, tenant(registry)))
    return there


# --- well ----------------------------------------------------------------------------------------------------------


def test_a_running_installation_is_well(tmp_path: Path, provider: Provider) -> None:
    """Every check has its row and is content, beside a running server; and the table has them all."""
    with billing(tmp_path, provider, ["instant:3"], command=COMMAND) as there:
        here = Place(tmp_path, yaml.safe_load((tmp_path / "interlace.yaml").read_text()))
        here.write(port=there.port)
        done = here.doctor("--json", "--running")
        report = json.loads(done.stdout)
        assert [one for one in report["checks"] if one["status"] != "ok"] == []
        assert tuple(dict.fromkeys(one["check"] for one in report["checks"])) == CHECKS
        assert (done.returncode, report["ok"]) == (0, True)
        shown = here.doctor()
        assert [line.split()[0] for line in shown.stdout.splitlines()[1:]] == [one["check"] for one in report["checks"]]
        assert "What to do" not in shown.stdout
        assert here.doctor("--only", "teeth").returncode == 2


def test_a_fresh_machine_is_warned_and_nothing_is_made(tmp_path: Path) -> None:
    """Before the first start nothing fails, each warning says what to do, and no file was made."""
    done = Place(tmp_path, {}).doctor()
    assert done.returncode == 0, done.stdout
    assert "there is no ledger" in done.stdout
    assert done.stdout.count("\n      ") == done.stdout.count(" warn ")
    assert list(tmp_path.iterdir()) == []


# --- the machine ---------------------------------------------------------------------------------------------------


def test_a_wrong_configuration(place: Place) -> None:
    """Is told with line and mend, and nothing else can be looked at."""
    (place.folder / "interlace.yaml").write_text("port: 1\nhots: x\n")
    done = place.doctor("--json")
    report = json.loads(done.stdout)
    assert (done.returncode, [one["check"] for one in report["checks"]]) == (1, ["configuration"])
    assert report["checks"][0]["what"].startswith("interlace.yaml:2: hots: is no setting")


def test_the_home_folder(place: Place) -> None:
    """A secret that others can read, one that is gone, and a home that is a file."""
    (place.home / "secret").chmod(0o644)
    assert f"chmod go= {place.home / 'secret'}" in place.said("home", "warn")
    (place.home / "secret").unlink()
    assert "Restore it from a backup" in place.said("home", "fail")
    assert place.said("home", "ok", env={"INTERLACE_SECRET": "x" * 32})
    shutil.rmtree(place.home)
    place.home.write_text("")
    assert "is no folder" in place.said("home", "fail")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_of_another_user(place: Place) -> None:
    """A command that was run as root leaves files that the service cannot write."""
    os.chown(place.home / "ledger.db", 12345, 12345)
    assert "belongs to another user" in place.said("home", "warn")


def test_the_disk(place: Place) -> None:
    """Less room than asked for is a warning (here: more than any disk has)."""
    assert "less than 8e+05 TiB" in place.said("disk", "warn", "--min-free", "800000TiB")
    assert place.said("disk", "ok", "--min-free", "1MiB")
    assert place.doctor("--min-free", "much").returncode == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_disk_that_is_full(place: Place, tmp_path: Path) -> None:
    """No room is a failure: the record cannot be written."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        assert "Make room now" in place.said("disk", "fail", env={"INTERLACE_HOME": str(small)})
    finally:
        subprocess.run(["umount", small], check=True)


def test_open_files(place: Place) -> None:
    """A hard limit below what full queues need."""
    few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))  # noqa: E731
    assert "512 open files at most, and full queues need 2816" in place.said("files", "warn", preexec_fn=few)
    assert place.said("files", "ok", env={"INTERLACE_QUEUE": "0", "INTERLACE_CONCURRENCY": "100"}, preexec_fn=few)


def test_packages_and_checkpoints(place: Place) -> None:
    """A local model without its runtime, without its weights, and with weights that the next start pulls."""
    local = {"name": "m", "checkpoint": str(tiny_llama_gguf(place.folder / "tiny.gguf"))}
    place.write(models=[local])
    assert place.said("packages", "ok")
    assert place.said("checkpoints", "ok") == f"m: {local['checkpoint']} -> ", "where it lies, and no more"
    hidden = place.folder / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import sys, importlib.abc\n"
        "class Hide(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'openvino': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hide())\n"
    )
    path = os.pathsep.join([str(hidden), os.environ.get("PYTHONPATH", "")])
    assert "openvino" in place.said("packages", "fail", env={"PYTHONPATH": path})
    (place.folder / "tiny.gguf").unlink()
    assert "tiny.gguf" in place.said("checkpoints", "fail")
    place.write(models=[{"name": "m", "checkpoint": "smollm2-135m-instruct"}])
    assert "interlace pull smollm2-135m-instruct" in place.said("checkpoints", "warn")


# --- the ledger ----------------------------------------------------------------------------------------------------


def _rubbish(place: Place) -> None:
    (place.home / "ledger.db").write_bytes(b"no database " * 1000)


def _older(place: Place) -> None:
    place.sql("UPDATE alembic_version SET version_num = '0001'")


def _newer(place: Place) -> None:
    place.sql("UPDATE alembic_version SET version_num = '9999'")
    place.sql("UPDATE facts SET value = '9999' WHERE name = 'oldest'")


def _gone(place: Place) -> None:
    (place.home / "ledger.db").unlink()


@pytest.mark.parametrize(
    ("spoil", "status", "words"),
    [
        (_rubbish, "fail", "file is not a database"),
        (_older, "warn", "interlace ledger backup"),
        (_newer, "fail", "Install the newer Interlace"),
        (_gone, "warn", "there is no ledger"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_database(place: Place, spoil: Callable[[Place], None], status: str, words: str) -> None:
    """One that is none, of another version, or not there; and no other check stumbles over it."""
    assert place.said("database", "ok")
    spoil(place)
    assert words in place.said("database", status)
    every = json.loads(place.doctor("--json").stdout)["checks"]
    assert not [one for one in every if "could not be looked at" in one["what"]], every


def test_a_database_that_takes_no_writes(place: Place) -> None:
    """A program that holds the write lock stops every request's record, whatever can be read."""
    with closing(sqlite3.connect(place.home / "ledger.db", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        assert "database is locked" in place.said("database", "fail")


def test_balances_that_are_not_their_events(place: Place) -> None:
    """Whose, how much, and where to look further."""
    assert place.said("drift", "ok")
    place.sql("UPDATE balances SET spent_nanos = 56 WHERE scope = 'project'")
    said = place.said("drift", "fail")
    assert "is 56, its events are 55 nano-dollars" in said
    assert "interlace ledger check" in said
    place.sql("DELETE FROM balances")
    assert len(said.split("; ")) == 1
    assert len(place.said("drift", "fail").split("; ")) == 3


def test_a_clock_that_was_set_back(place: Place) -> None:
    """A record from the future: the clock was ahead when it was made, or is behind now."""
    assert place.said("clock", "ok")
    place.sql("UPDATE usage_events SET started_us = started_us + 7200000000")
    assert "in the future" in place.said("clock", "fail")


def test_prices(place: Place) -> None:
    """A model without one is refused; one of a provider's that nobody has looked at for long may be wrong."""
    place.write(prices=[])
    place.sql("UPDATE prices SET retired_at = 1")
    assert "m has none, so it is refused" in place.said("prices", "fail")
    place.sql("UPDATE prices SET retired_at = NULL, recorded_at = recorded_at - 200 * 86400000000")
    assert "200 days ago" in place.said("prices", "warn")
    assert place.said("prices", "ok", "--price-days", "300")


def test_owners(place: Place) -> None:
    """An owner whom nobody bears the name of leaves a model to nobody, and to the first who takes the name."""
    assert "nothing has an owner" in place.said("owners", "ok")
    checkpoint = str(tiny_llama_gguf(place.folder / "owned.gguf"))
    place.write(models=[{"name": "m", "checkpoint": checkpoint, "owner": "acmee"}])
    assert "m belongs to acmee, and no organisation is called so" in place.said("owners", "fail")
    place.sql("UPDATE organisations SET name = 'acmee'")
    assert "the owners of 1 models and adapters are there" in place.said("owners", "ok")


def test_models_that_were_added_by_command(place: Place) -> None:
    """They are served as those of the configuration are: one without a price is refused as any other, and one whose
    checkpoint is like another's has that one's. A list that cannot be read keeps the server from starting."""
    for name in ("mine", "like"):
        pull(str(tiny_llama_gguf(place.folder / f"{name}.gguf")), place.home, name=name)
    change_added_models(place.home, lambda _: (AddedModel("mine", "mine"), AddedModel("like", "like", "", "m")))
    told = "mine has none, so it is refused -> interlace prices create mine --prompt ..."
    assert place.said("prices", "fail") == told
    place.write(prices=[priced("m"), priced("mine")])
    assert "3 of 3" in place.said("prices", "ok")
    assert "like: " in place.said("checkpoints", "ok")
    (place.home / "models" / "added.json").write_text("[{")
    told = place.said("configuration", "fail")
    assert "added.json cannot be read" in told
    assert told.endswith("-> Restore it from a backup, or remove it")


# --- outside -------------------------------------------------------------------------------------------------------


def _expire(files: Pair) -> None:
    files.renew(datetime.now(UTC) - timedelta(hours=1))


def _mismatch(files: Pair) -> None:
    files.write_key(files.issue())


def _end_soon(files: Pair) -> None:
    files.renew(datetime.now(UTC) + timedelta(days=3, hours=1))


def _lend_key(files: Pair) -> None:
    files.key.chmod(0o644)


@pytest.mark.parametrize(
    ("spoil", "status", "words"),
    [
        (_expire, "fail", "expired on"),
        (_mismatch, "fail", "is not the key of"),
        (_end_soon, "warn", "expires in 3 days"),
        (_lend_key, "warn", "chmod o="),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_certificates(place: Place, spoil: Callable[[Pair], None], status: str, words: str) -> None:
    """What would be told at the next start, or by callers, is told before."""
    files = pair(place.folder / "tls")
    place.write(tls=files.settings)
    assert "until" in place.said("certificate", "ok")
    spoil(files)
    assert words in place.said("certificate", status)


def test_plain_text_on_every_network(place: Place) -> None:
    """Keys in plain text on a network, unless a proxy in front is named."""
    place.write(host="0.0.0.0")
    assert "plain text" in place.said("certificate", "warn")
    place.write(proxy={"trusted": ["10.0.0.0/8"]})
    assert place.said("certificate", "ok")


def test_providers(place: Place, provider: Provider) -> None:
    """A key that is not set, an address where nothing listens; and nothing is asked for that costs."""
    model = place.config["models"][0]
    assert "is reached" in place.said("providers", "ok")
    assert provider.bodies("able") == []
    place.write(models=[{**model, "api_key": "${SOME_KEY}"}])
    assert "SOME_KEY" in place.said("providers", "fail")
    assert place.said("providers", "ok", env={"SOME_KEY": "x"})
    place.write(models=[{**model, "base_url": f"http://127.0.0.1:{free_port()}/v1"}])
    assert "Connection refused" in place.said("providers", "fail")


@contextmanager
def _tls_server(files: Pair) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    plain, _ = listening.accept()
                    with plain, context.wrap_socket(plain, server_side=True) as secure:
                        secure.recv(1)
                except ssl.SSLError:
                    continue
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


def test_the_server_that_machines_count_in(place: Place, redis_server: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away, forgetful, a replica, or with an address that is none: limits would not hold, or each machine would
    go by its own. Its password is not shown."""
    assert "counts limits for itself" in place.said("redis", "ok")
    place.write(redis={"url": "${REDIS_URL}"}, ledger={"url": "postgresql://nobody@127.0.0.1:1/none"})
    assert "REDIS_URL is not set" in place.said("redis", "fail")
    monkeypatch.setenv("REDIS_URL", "http://:hunter2-quartz@redis.example")
    assert "hunter2" not in place.said("redis", "fail")
    monkeypatch.setenv("REDIS_URL", f"redis://:hunter2-quartz@127.0.0.1:{free_port()}/0")
    said = place.said("redis", "fail")
    assert "it does not answer" in said
    assert "hunter2" not in said
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    assert "answers in" in place.said("redis", "ok")
    with redis_server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        assert "noeviction" in place.said("redis", "warn")
        client.config_set("maxmemory-policy", "noeviction")
        client.replicaof("127.0.0.1", str(free_port()))
        assert "takes no writes" in place.said("redis", "fail")
        client.replicaof("NO", "ONE")


def test_a_provider_whose_certificate_is_not_trusted(place: Place) -> None:
    """A proxy that breaks TLS open, or an address that is not the provider's."""
    files = pair(place.folder / "tls")
    files.authority.cert_pem.write_to_path(place.folder / "ca.pem")
    with _tls_server(files) as port:
        place.write(models=[{**place.config["models"][0], "base_url": f"https://127.0.0.1:{port}/v1"}])
        assert "its certificate is not trusted" in place.said("providers", "fail")
        assert place.said("providers", "ok", env={"SSL_CERT_FILE": str(place.folder / "ca.pem")})


def test_paid_questions_only_when_asked_for(place: Place, provider: Provider) -> None:
    """`--paid` finds a provider that is reached but does not answer as it should."""
    assert "able" not in [body["model"] for body in provider.bodies("able")]
    assert "m answers" in place.said("providers", "ok", "--paid")
    assert provider.bodies("able")
    place.write(models=[{**place.config["models"][0], "model": "status:401"}])
    assert "interlace providers check m" in place.said("providers", "fail", "--paid")


def test_the_server(place: Place) -> None:
    """None runs (a failure only for who says one must), something else listens there, or a model has not loaded."""
    assert "none answers" in place.said("server", "warn")
    assert "none answers" in place.said("server", "fail", "--running")
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as stranger:
        threading.Thread(target=stranger.serve_forever, daemon=True).start()
        there = f"http://127.0.0.1:{stranger.server_port}"
        assert "is no Interlace" in place.said("server", "fail", "--url", there)
        stranger.shutdown()
    weights = place.folder / "broken.gguf"
    weights.write_bytes(tiny_llama_gguf(place.folder / "tiny.gguf").read_bytes()[:5000])
    place.write(models=[*place.config["models"], {"name": "broken", "checkpoint": str(weights)}])
    with (place.folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [*COMMAND, "serve"], env=environment(place.home), cwd=place.folder, stdout=log, stderr=log
        )
        try:
            patiently(lambda: "broken could not be loaded" in (place.folder / "serve.log").read_text())
            assert "broken is failed" in place.said("server", "fail")
        finally:
            process.terminate()
            process.wait(60)
