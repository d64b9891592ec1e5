"""The machine: the home folder, its disk, open files, packages and checkpoints."""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from interlace.gateway.commands import checkpoint_faults
from interlace.gateway.doctor.findings import Case, Finding, fail, ok, warn
from interlace.ledger.health import database_file

NO_ROOM_BYTES = 100 << 20  # less than this is as good as nothing
SPARE_FILES = 256  # beside callers and providers: libraries, weights, sockets of engine hosts
_PRIVATE = ("secret", "key", "ledger.db", "ledger.db-wal", "files")
_LOCAL_PACKAGES = ("openvino", "tokenizers", "llguidance")


def home(case: Case) -> Iterator[Finding]:
    """Whether it is ours, and nobody else's."""
    folder = case.settings.home
    if not folder.exists():
        yield warn(f"{folder} is not there yet", "Nothing, if this is a first start: interlace serve makes it")
        return
    if not folder.is_dir():
        yield fail(f"{folder} is no folder", "Name a folder: INTERLACE_HOME, or `home:` in interlace.yaml")
        return
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield fail(f"{folder} cannot be written by this user", f"chown -R the service's user {folder}")
    found = list(_open_to_others(folder))
    yield from found
    if (folder / "ledger.db").exists() and not (folder / "secret").exists() and not case.env.get("INTERLACE_SECRET"):
        mend = f"Restore it from a backup before the next start, which would make a new one: {folder / 'secret'}"
        yield fail("the ledger is there, but the secret that recognises its keys is not", mend)
    elif not found:
        yield ok(f"{folder}")


def _open_to_others(folder: Path) -> Iterator[Finding]:
    owner = folder.stat().st_uid
    for name in _PRIVATE:
        try:
            state = (folder / name).stat()
        except OSError:
            continue
        if state.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            yield warn(f"{folder / name} is open to other users", f"chmod go= {folder / name}")
        if state.st_uid != owner:
            mend = f"chown -R --reference={folder} {folder}, and run commands as that user"
            yield warn(f"{folder / name} belongs to another user than {folder}", mend)


def disk(case: Case) -> Iterator[Finding]:
    """Room for the record and what callers leave."""
    folders = {_there(case.settings.home)}
    if (file := database_file(case.settings)) is not None:
        folders.add(_there(file.parent))
    for folder in sorted(folders):
        free = shutil.disk_usage(folder).free
        said = f"{_size(free)} free at {folder}"
        if free < NO_ROOM_BYTES:
            yield fail(said, "Make room now: requests are refused while the record cannot be written")
        elif free < case.min_free_bytes:
            yield warn(f"{said}, less than {_size(case.min_free_bytes)}", "Make room, or set ledger.details_days")
        else:
            yield ok(said)


def files(case: Case) -> Iterator[Finding]:
    """Descriptors: one for a caller and one for a provider, of every request that runs or waits."""
    try:
        import resource
    except ImportError:  # not on Windows, where there is no such limit
        return
    limits = case.settings.limits
    need = 2 * (limits.concurrency + limits.queue) + SPARE_FILES
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # a server raises its own to this
    if hard != resource.RLIM_INFINITY and hard < need:
        mend = f"Set LimitNOFILE={2 * need} in the unit (ulimit -Hn in a shell), or lower limits.queue"
        yield warn(f"{hard} open files at most, and full queues need {need}", mend)
    else:
        yield ok(f"{'any number of' if hard == resource.RLIM_INFINITY else hard} open files, {need} needed")


def packages(case: Case) -> Iterator[Finding]:
    """What local models run on; those of providers are looked for with their keys."""
    if not any(model.engine == "local" for model in case.settings.models):
        yield ok("no local model needs any")
        return
    missing = [name for name in _LOCAL_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        yield fail(f"not installed: {', '.join(missing)}", "pip install --force-reinstall interlace")
    else:
        yield ok(", ".join(_LOCAL_PACKAGES))


def checkpoints(case: Case) -> Iterator[Finding]:
    """Whether local models have their weights, or can have them."""
    from interlace import models
    from interlace.errors import CheckpointError

    if not any(model.engine == "local" for model in case.settings.models):
        yield ok("no local model needs any")
    faults = list(checkpoint_faults(case.settings))
    for where, problem, mend in faults:
        yield fail(f"{where}: {problem}", mend)
    for model in case.settings.models:
        if model.engine != "local" or faults:
            continue
        try:
            yield ok(f"{model.name}: {models.resolve(model.checkpoint, case.settings.home).path}")
        except CheckpointError:
            yield warn(f"{model.name}: to be pulled at the next start", f"interlace pull {model.checkpoint}")


def _there(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _size(number: int) -> str:
    amount = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.4g} {unit}"
        amount /= 1024
    return f"{amount:.4g} TiB"
