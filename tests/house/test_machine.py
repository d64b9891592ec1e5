"""The page about deployment, on a machine with systemd: this one's own file system, booted in a throw-away copy."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.support.served import patiently

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/how-to/deploy.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PYTHON = Path("/usr" if sys.base_prefix == "/usr" else "/srv/python")  # ours may lie where only we can read it
BOOT = """
mount --bind / "$1"/root
for tree in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do  # a place of its own, whatever is mounted
    [ -e $tree/cgroup.procs ] && mkdir -p $tree/interlace-test && echo $$ > $tree/interlace-test/cgroup.procs
done
shift
exec systemd-nspawn "$@"
"""
# What stands for `pip install`, which would take minutes: the tree under test and this environment's packages.
INSTALLED = f"""#!/bin/sh
export PYTHONPATH=/srv/interlace/src:/srv/packages LD_LIBRARY_PATH={PYTHON}/lib
exec {PYTHON}/bin/python3.{sys.version_info.minor} -m interlace "$@"
"""


@dataclass
class Machine:
    """One that runs: `boot` tells its first process."""

    boot: psutil.Process

    def run(self, script: str, *, check: bool = True) -> str:
        """What a shell of root prints in it, and reports as wrong."""
        done = subprocess.run(
            ["nsenter", "--target", str(self.boot.pid), "--all",
             "env", "-i", f"PATH={PATH}", "HOME=/root", "LANG=C.UTF-8",
             "bash", "-c", f"set -euo pipefail; cd /srv/interlace\n{script}"],
            capture_output=True, text=True, check=False, timeout=170, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        printed = done.stdout + done.stderr
        assert not check or done.returncode == 0, f"{script}\n{printed}\n{self.log() if script != LOG else ''}"
        return printed

    def log(self) -> str:
        """What the service wrote."""
        return self.run(LOG)

    def shown(self, name: str, unit: str = "interlace") -> str:
        """A property of a unit."""
        return self.run(f"systemctl show --property={name} --value {unit}").strip()

    def served(self) -> bool:
        """Whether the service has its model ready."""
        time.sleep(0.3)  # it is asked until it has: not for all the processor
        return '"status":"ready"' in self.run("curl -sk https://127.0.0.1:8443/readyz", check=False)

    def chat(self) -> str:
        """What the model answers."""
        return self.run("echo 'What is the capital of France?' | as-interlace interlace chat --temperature 0")


LOG = "journalctl --no-pager --output=cat --unit=interlace --unit=interlace-backup"


@contextmanager
def _booted(folder: Path, *binds: str) -> Iterator[Machine]:
    """This machine's file system under a layer in memory, with systemd as first process and no network but loopback."""
    (folder / "root").mkdir()
    log = folder / "boot.log"
    command = [
        "unshare", "--mount", "--propagation=private", "sh", "-euc", BOOT, "boot", str(folder),
        f"--directory={folder}/root", "--volatile=overlay", "--boot", "--register=no", "--private-network",
        "--resolv-conf=off", "--machine=interlace-test", "--console=read-only", *binds,
        *([] if Path("/run/systemd/system").exists() else ["--keep-unit"]), "systemd.unit=basic.target",
    ]  # fmt: skip
    with log.open("wb") as sink:
        nspawn = psutil.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
    try:
        yield Machine(_first_process(nspawn, log))
    finally:
        nspawn.terminate()  # it shuts the machine down
        try:
            nspawn.wait(60)
        except subprocess.TimeoutExpired:
            nspawn.kill()
            nspawn.wait()
        _leave_no_cgroup()


def _first_process(nspawn: psutil.Popen, log: Path) -> psutil.Process:
    """Once it has started everything; a machine that may not be booted here skips the test, with the reason."""
    until = time.monotonic() + 90
    while time.monotonic() < until and nspawn.poll() is None:
        for child in nspawn.children():
            if subprocess.run(
                ["nsenter", "--target", str(child.pid), "--all", "systemctl", "is-active", "--quiet", "basic.target"],
                check=False, capture_output=True, timeout=30,
            ).returncode == 0:  # fmt: skip
                return child
        time.sleep(0.3)
    said = log.read_text(errors="replace").strip()
    pytest.skip(f"no machine can be booted here: {said.splitlines()[-1] if said else 'it does not start'}")


def _leave_no_cgroup() -> None:
    for tree in ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
        for folder, _, _ in os.walk(f"{tree}/interlace-test", topdown=False):
            try:
                Path(folder).rmdir()
            except OSError:  # something in it ends only now: empty, it hurts nobody
                return


def _as_root(block: str) -> str:
    """The commands of a console block, without those that make the environment."""
    lines = [line.removeprefix("# ") for line in block.splitlines() if line.startswith("# ")]
    return "\n".join(line for line in lines if "venv" not in line and "pip" not in line)


def _replaced(there: Machine, killed: Callable[[], str]) -> None:
    """Kill a process, and wait for another in its place that serves."""
    before = killed()
    there.run(f"kill -9 {before}")
    patiently(lambda: killed() not in ("", "0", before) and there.served())


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root boots machines")
@pytest.mark.skipif(shutil.which("systemd-nspawn") is None, reason="apt-get install systemd-container")
def test_a_machine_is_deployed_by_the_page(smollm2_gguf: Path, tmp_path: Path) -> None:
    """Under systemd and its sandbox: installed, started, reloaded, killed, backed up, restored and stopped as the page
    says, by root and by the service's user where it says so."""
    blocks = BLOCK.findall(PAGE.read_text())
    config = next(text for language, text in blocks if language == "yaml")
    certificate, asked, renewed, pages, backup, upgraded = (text for language, text in blocks if language == "bash")
    install, start, timer, upgrade = (text for language, text in blocks if language == "console" and text[0] == "#")
    seen = {"interlace": ROOT, "packages": sysconfig.get_path("purelib"), "model.gguf": smollm2_gguf.resolve()}
    binds = [f"--bind-ro={path}:/srv/{name}" for name, path in seen.items()] + [f"--bind-ro={sys.base_prefix}:{PYTHON}"]
    with _booted(tmp_path, *binds) as there:
        there.run("id interlace >/dev/null 2>&1 && userdel interlace || true; mkdir -p /opt/interlace/bin")
        there.run(f"install -m 0755 <(echo {shlex.quote(INSTALLED)}) /opt/interlace/bin/interlace")
        there.run(_as_root(install))
        there.run(f"echo {shlex.quote(config)} > /etc/interlace/interlace.yaml")
        there.run("as-interlace interlace pull /srv/model.gguf --name smollm2-135m-instruct")
        as_service: Callable[[str], str] = lambda block: there.run(  # noqa: E731
            f"as-interlace bash -euo pipefail -c {shlex.quote(block)}"
        )
        assert "server.pem, until" in as_service(certificate)
        there.run(_as_root(start))
        patiently(there.served)
        printed = as_service(asked)
        assert "Paris" in printed
        assert " fail " not in printed
        as_service(renewed)
        assert "https://app.example.com" in as_service(pages)

        there.run("systemctl reload interlace")
        patiently(lambda: "the configuration was reloaded" in there.log())
        _replaced(there, lambda: there.run("pgrep -f '[i]nterlace.engines.host smollm2' || true").strip())
        assert there.shown("NRestarts") == "0"
        _replaced(there, lambda: there.shown("MainPID"))
        assert there.shown("NRestarts") == "1"
        assert "Paris" in there.chat()

        there.run(_as_root(timer))
        there.run("touch -d '40 days ago' /var/backups/interlace/ledger-old.db")
        there.run("systemctl start interlace-backup.service")
        made = there.run("ls /var/backups/interlace").split()
        assert len(made) == 1, "the new one, and not the one of forty days ago"
        as_service(backup)
        assert "Paris" in there.chat()
        assert there.run(_as_root(upgrade).splitlines()[0])
        there.run("systemctl stop interlace")
        assert (there.shown("Result"), there.shown("ExecMainStatus")) == ("success", "0")
        restored = as_service(f"interlace ledger restore /var/backups/interlace/{made[0]}")
        assert "every sum agrees" in restored
        there.run("systemctl start interlace")
        patiently(there.served)
        assert "Paris" in there.chat()
        assert "every sum agrees" in as_service(upgraded)
