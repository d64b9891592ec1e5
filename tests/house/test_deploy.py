"""What lies in `deploy/` works, and the page about it is true: it is run, from the certificate to the backup."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from interlace.cli import app
from tests.support.served import patiently
from tests.support.serving import environment, free_port

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/how-to/deploy.md"
DEPLOY = ROOT / "deploy"
INTERLACE = f"{sys.executable} -m interlace"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _unit(name: str) -> dict[str, list[str]]:
    """The directives of a unit, each with its values."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / name).read_text().splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


# --- the page ------------------------------------------------------------------------------------------------------


class Machine:
    """A folder that stands for the machine of the page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.home = folder / "var/lib/interlace"
        for name in ("etc/interlace/tls", "var/backups/interlace", "var/lib/interlace"):
            (folder / name).mkdir(parents=True)

    def mapped(self, text: str) -> str:
        """A text of the page with the folders and the port of this machine."""
        text = re.sub(r"(?<![\w/])/(etc|var/lib|var/backups)/interlace", rf"{self.folder}/\1/interlace", text)
        return text.replace("/opt/interlace/bin/interlace", INTERLACE).replace("8443", str(self.port))

    @property
    def env(self) -> dict[str, str]:
        """That of the unit."""
        told = dict(pair.split("=", 1) for pair in self.mapped(_unit("interlace.service")["Environment"][0]).split())
        return environment(self.home) | told

    def run(self, script: str) -> str:
        """What a block prints."""
        done = subprocess.run(
            ["bash", "-c", f"set -euo pipefail\n{self.mapped(script)}"], env=self.env, cwd=self.folder,
            capture_output=True, text=True, check=False, timeout=150,
        )  # fmt: skip
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}\n{self.log}"
        return done.stdout

    @property
    def log(self) -> str:
        """What the server wrote."""
        file = self.folder / "serve.log"
        return file.read_text() if file.exists() else ""

    @contextmanager
    def service(self) -> Iterator[None]:
        """The unit's command, once it reports that it is ready; ended as systemd does, with 0."""
        unit = _unit("interlace.service")
        assert unit["Type"] == ["notify"]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, (self.folder / "serve.log").open("wb") as log:
            manager.bind(str(self.folder / "notify"))
            manager.settimeout(120)
            command = self.mapped(unit["ExecStart"][0]).split()
            env = self.env | {"NOTIFY_SOCKET": str(self.folder / "notify")}
            process = subprocess.Popen(command, env=env, cwd=self.folder, stdout=log, stderr=log)
            try:
                assert manager.recv(64) == b"READY=1"
                yield
                process.terminate()
                assert process.wait(60) == 0
            finally:
                process.kill()
                process.wait()


def test_the_page_is_true(smollm2_gguf: Path, tmp_path: Path) -> None:
    """Who follows it has an encrypted server that answers, a renewed certificate, an open origin and a backup."""
    there = Machine(tmp_path)
    blocks = BLOCK.findall(PAGE.read_text())
    config = next(text for language, text in blocks if language == "yaml")
    (tmp_path / "etc/interlace/interlace.yaml").write_text(there.mapped(config))
    pull = [*INTERLACE.split(), "pull", str(smollm2_gguf), "--name", "smollm2-135m-instruct"]
    subprocess.run(pull, check=True, env=environment(there.home), timeout=120)
    certificate, asked, renewed, pages, backup, upgraded = (text for language, text in blocks if language == "bash")
    assert "certificate  ok" in there.run(certificate)
    with there.service():
        patiently(lambda: "is ready after" in there.log)
        printed = there.run(asked)
        assert "Paris" in printed
        assert '"status":"ready"' in printed
        assert " fail " not in printed
        there.run(renewed)
        assert "https://app.example.com" in there.run(pages)
        assert re.fullmatch(r".*\nledger-\w+\.db\n", there.run(backup))
        assert "every sum agrees" in there.run(upgraded)
    assert "the certificate was renewed" in there.log


# --- what lies in deploy/ --------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """No directive is misspelt or outdated, and little is left open to a server that is broken into."""
    for file in DEPLOY.glob("*.[st]*e*"):
        shutil.copy(file, tmp_path)
    for unit in tmp_path.iterdir():
        unit.write_text(unit.read_text().replace("/opt/interlace/bin/interlace", sys.executable))
    units = [str(unit) for unit in sorted(tmp_path.iterdir())]
    assert [Path(unit).name for unit in units] == [
        "interlace-backup.service", "interlace-backup.timer", "interlace.service"
    ]  # fmt: skip
    verified = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False, timeout=60
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    for unit in units[::2]:
        command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", "--threshold=20", unit]
        scored = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert scored.returncode == 0, scored.stdout[-200:]


def test_the_unit_leaves_time_for_the_drain() -> None:
    """systemd would kill a server that is still settling what it cut off."""
    from interlace.config import Settings

    assert float(_unit("interlace.service")["TimeoutStopSec"][0]) >= Settings().drain_seconds + 20


def test_units_run_on_a_small_debian() -> None:
    """A command of a package that may be missing fails when it is wanted: /bin/kill is of procps, for one.
    What `as-interlace` runs has the service's limits."""
    essential = {"/bin/sh", "/usr/bin/find", "/opt/interlace/bin/interlace"}
    for name in ("interlace.service", "interlace-backup.service"):
        unit = _unit(name)
        commands = [command for key in ("ExecStart", "ExecReload") for command in unit.get(key, [])]
        assert {command.split()[0] for command in commands} <= essential
    (limit,) = _unit("interlace.service")["LimitNOFILE"]
    assert f"--property=LimitNOFILE={limit} " in (DEPLOY / "as-interlace").read_text()


def test_the_backup_unit_does_what_it_says(tmp_path: Path) -> None:
    """Its command makes a dated backup; systemd's percent signs are doubled as they must be."""
    there = Machine(tmp_path)
    from tests.support.ledgers import open_ledger

    with open_ledger(there.home):
        pass
    (tmp_path / "etc/interlace/interlace.yaml").write_text("port: 1\n")
    commands = _unit("interlace-backup.service")["ExecStart"]
    for command in commands:
        assert "%" not in command.replace("%%", "")
        there.run(command.replace("%%", "%"))
    (made,) = (tmp_path / "var/backups/interlace").iterdir()
    assert re.fullmatch(r"ledger-\d{8}T\d{6}Z\.db", made.name)


def test_alerts_ask_for_metrics_that_exist() -> None:
    """A rule over a metric that nobody writes never fires. Each says how urgent it is and what to do."""
    (group,) = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"]
    known = set(re.findall(r"`(interlace_\w+)`", (ROOT / "docs/reference/metrics.md").read_text()))
    verbs = set(getattr(get_command(app), "commands", {}))
    for rule in group["rules"]:
        asked = set(re.findall(r"interlace_\w+", rule["expr"]))
        assert {re.sub(r"_bucket$", "", name) for name in asked} <= known, rule["alert"]
        assert asked or rule["expr"].startswith("up{")
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]
        assert set(re.findall(r"interlace (\w+)", rule["annotations"]["do"])) - {"answers"} <= verbs | {""}, rule[
            "alert"
        ]
    promtool = shutil.which("promtool")
    if promtool is not None:
        command = [promtool, "check", "rules", str(DEPLOY / "alerts.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


# --- the container -------------------------------------------------------------------------------------------------


def _instructions() -> list[tuple[str, str]]:
    text = (ROOT / "Containerfile").read_text()
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1].strip()) for line in lines if line.strip()]


def test_the_containerfile_is_sound() -> None:
    """It cannot be built without a registry, so what can be known beforehand is: what is copied exists, bases have a
    tag, the last user is not root, signals, health and volume are those of the server, and podman keeps the health."""
    steps = _instructions()
    last = dict(steps)
    assert all(re.search(r":\d[\w.-]+( AS \w+)?$", value) for name, value in steps if name == "FROM")
    for name, value in steps:
        if name == "COPY" and not value.startswith("--from="):
            *sources, _ = value.split()
            assert all((ROOT / source).exists() for source in sources), value
            assert {f"!{source}" for source in sources} <= set((ROOT / ".dockerignore").read_text().split()), value
    names = [name for name, _ in steps]
    assert set(names) <= {
        "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT",
        "CMD",
    }  # fmt: skip
    assert last["USER"].isdigit()
    assert int(last["USER"]) > 0
    assert f"--uid {last['USER']} " in last["RUN"], "created before it is used"
    assert max(i for i, name in enumerate(names) if name == "RUN") < names.index("USER")
    assert last["STOPSIGNAL"] == "SIGTERM"
    home = dict(pair.split("=", 1) for pair in last["ENV"].split())["INTERLACE_HOME"]
    assert home == last["VOLUME"] == last["WORKDIR"]
    health = json.loads(last["HEALTHCHECK"].partition("CMD ")[2])
    entry, start = json.loads(last["ENTRYPOINT"]), json.loads(last["CMD"])
    verbs = getattr(get_command(app), "commands", {})
    assert (entry, health[0]) == (["interlace"], "interlace")
    assert start[0] in verbs
    assert health[1] in verbs
    for file in (PAGE, ROOT / "Containerfile"):
        builds = re.findall(r"podman build\b.*", file.read_text())
        assert builds
        assert all("--format docker" in build for build in builds), "podman's own format drops HEALTHCHECK"
    assert not re.search(r"(?i)key|secret|token|password", " ".join(value for name, value in steps if name == "ENV"))


def test_its_health_command_tells_a_server_from_none(tmp_path: Path) -> None:
    """Exit code 1 without a server: the container is restarted."""
    health = json.loads(dict(_instructions())["HEALTHCHECK"].partition("CMD ")[2])
    env = environment(tmp_path) | {"INTERLACE_PORT": str(free_port()), "INTERLACE_HOST": "0.0.0.0"}
    command = [*INTERLACE.split(), *health[1:]]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "none answers" in done.stdout
