"""The folder of a run, and what in it can be trusted after a crash.

    tuning/NAME/run.json               what the run is of; another run may not go on in this folder
    tuning/NAME/before.json            how well the base knows the held-out examples
    tuning/NAME/said.json              what the base answers to them, where a metric needs it
    tuning/NAME/answers.jsonl          the answers wanted, and those before and after
    tuning/NAME/checkpoints/           checkpoint-N, each sound only with its `sealed.json`
    tuning/NAME/adapter/               the finished adapter with its manifest; there whole or not at all
    tuning/NAME/model/                 the same of a run that makes a checkpoint
    tuning/NAME/log.txt                what the libraries said
    tuning/NAME/tensorboard/           what TensorBoard reads, with tensorboard.json: up to which step it is whole
    tuning/NAME/mlflow.json            which of MLflow's runs this is
    tuning/NAME/replaces               it may take the place of what is served by its name, and is not in service yet
    tuning/.anew/NAME/                 the same files of a run that goes on beside a finished one, until it is finished
    tuning/.earlier/NAME/              what it takes the place of, while it does
    tuning/.machines/NAME-1/           of a machine that helps another, while it does; and its log

A checkpoint is sealed once all its files are on disk: `sealed.json` has their digests. What is not sealed, or does not
match, is removed when the run goes on; so a crash costs the steps since the last seal and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from interlace.errors import InterlaceError
from interlace.models import try_lock
from interlace.tuning.scores import out_of_patience

SEAL = "sealed.json"
CHECKPOINT = re.compile(r"checkpoint-(\d{1,12})")
_REPLACES, _RESULTS = "replaces", ("adapter", "model")
_LAST_WORDS_SECONDS = 30.0  # for the training process of a command that was killed; it ends at once
_PIECE = 1 << 20


class TuningError(InterlaceError):
    """A run cannot begin or has ended early; the message says what to change."""


class Sealed(msgspec.Struct, frozen=True):
    """What `sealed.json` says: each file's SHA-256."""

    files: dict[str, str]


class RunFolder:
    """Where a run keeps its state. `home` is Interlace's home folder; `kind` what the run makes; `machine` which of
    several it is: all but the first keep only what they need while they learn; `anew`: a finished run of that name
    stays until this one is finished."""

    def __init__(self, home: Path, name: str, kind: str = "lora", machine: int = 0, *, anew: bool = False) -> None:
        self.name, self._kind, self.anew = name, kind, anew
        self.runs = home / "tuning"
        place = self.runs / (f".machines/{name}-{machine}" if machine else name)
        self.path = self.runs / ".anew" / name if anew else place
        self.checkpoints = self.path / "checkpoints"
        self.result = self.path / ("adapter" if kind == "lora" else "model")
        self.log = self.path / "log.txt"
        self._locks = place.parent / ".locks"

    @contextmanager
    def locked(self, part: str = "run", patience_seconds: float = 0.0) -> Iterator[None]:
        """Hold the name, for a part of the work; raises `TuningError` while another run has it, or the training process
        of one that was killed a moment ago."""
        self._locks.mkdir(mode=0o700, parents=True, exist_ok=True)
        deadline = time.monotonic() + patience_seconds
        file = self._locks / f"{self.path.name}.{part}.lock"
        while (lock := try_lock(file)) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if lock is None:
            raise TuningError(
                f"A run named {self.name} is going on. Wait for its end, or give this one another --name."
            )
        try:
            yield
        finally:
            lock.release()

    # --- what the run is of --------------------------------------------------------------------------------------

    def claim(self, identity: dict[str, Any], *, fresh: bool) -> RunFolder:
        """Begin, or go on where the same run has stopped; the folder in which that is. A run in which nothing was
        learnt makes room for any other. Raises `TuningError` where one was here that has learnt, unless `fresh`, which
        throws away what it has not finished; what it has finished stays until `settle` puts the next result in its
        place. To be called after `settle`."""
        beside = self._beside()
        if not fresh and beside.is_of(identity):
            return beside
        if fresh and self._has_result:
            if self.replaces and self.is_of(identity):
                return self  # such a command has finished it, and not yet put it into service
            beside._begin(identity, fresh=True)
            return beside
        before = None if fresh else _read(self.path / "run.json")
        if before is not None and before == identity:
            return self
        if before is not None and (self._has_result or self.last_sealed()):
            told = ", ".join(differences(before, identity)) or "its form"
            raise TuningError(
                f"There is a run named {self.name} already, and it differs in {told}. Give this one another --name, or "
                "throw the earlier one away with --fresh."
            )
        self._begin(identity, fresh=fresh)
        return self

    def is_of(self, identity: dict[str, Any]) -> bool:
        """Whether that run was begun here."""
        try:
            return _read(self.path / "run.json") == identity
        except TuningError:
            return False

    def settle(self) -> None:
        """Put a run that has finished beside an earlier one in its place. It is there whole before the earlier one is
        removed; who is killed meanwhile leaves it to the next command."""
        beside, earlier = self._beside(), self.runs / ".earlier" / self.name
        if beside._has_result:
            shutil.rmtree(earlier, ignore_errors=True)
            if self.path.exists():
                earlier.parent.mkdir(mode=0o700, exist_ok=True)
                self.path.rename(earlier)
            beside.path.rename(self.path)
            _sync_folder(self.runs)
        shutil.rmtree(earlier, ignore_errors=True)

    @property
    def replaces(self) -> bool:
        """Whether what is here may take the place of what is served by its name, and is not in service yet."""
        return (self.path / _REPLACES).exists()

    def may_replace(self, identity: dict[str, Any]) -> bool:
        """Whether that run was begun with `fresh`, here or beside a finished one, and is not in service yet."""
        return (self.replaces and self.is_of(identity)) or self._beside().is_of(identity)

    def placed(self) -> None:
        """It is in service now, or there is nothing that serves it."""
        (self.path / _REPLACES).unlink(missing_ok=True)

    def _beside(self) -> RunFolder:
        return RunFolder(self.runs.parent, self.name, self._kind, anew=True)

    def _begin(self, identity: dict[str, Any], *, fresh: bool) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)  # it shows what the data are like
        with self.locked("training", _LAST_WORDS_SECONDS):
            self._clear()
        if fresh:
            (self.path / _REPLACES).touch()
        write_whole(self.path / "run.json", identity)

    def _clear(self) -> None:
        (self.path / "run.json").unlink(missing_ok=True)  # first: what is left of a half-removed run belongs to nobody
        for name in ("before.json", "said.json", "answers.jsonl", "report.json", "loss.svg", "log.txt",
                     "tensorboard.json", "mlflow.json", _REPLACES):  # fmt: skip
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        for name in (*_RESULTS, "tensorboard", ".result.partial"):
            shutil.rmtree(self.path / name, ignore_errors=True)

    @property
    def _has_result(self) -> bool:
        """Of either kind: an earlier run may have made another than this one does."""
        return any((self.path / name).is_dir() for name in _RESULTS)

    @property
    def finished(self) -> bool:
        """Whether the adapter, or the checkpoint, is there."""
        return self.result.is_dir()

    def manifest(self) -> dict[str, Any]:
        """Of what was made."""
        found = _read(self.result / "manifest.json")
        if found is None:
            raise TuningError(f"{self.result} has no manifest. Remove {self.path}, and tune again.")
        return found

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def last_sealed(self) -> Path | None:
        """The newest sound checkpoint. Those that are not, are removed."""
        found: list[tuple[int, Path]] = []
        for folder in self.checkpoints.glob("checkpoint-*"):
            match = CHECKPOINT.fullmatch(folder.name)
            if match and is_sealed(folder):
                found.append((int(match[1]), folder))
            else:
                shutil.rmtree(folder, ignore_errors=True)
        return max(found)[1] if found else None

    def keep_only(self, steps: set[int]) -> None:
        """Remove the checkpoints of other steps."""
        for folder in self.checkpoints.glob("checkpoint-*"):
            match = CHECKPOINT.fullmatch(folder.name)
            if match and int(match[1]) not in steps:
                (folder / SEAL).unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)


def is_done(last: Path, patience: int) -> bool:
    """Whether the run had come to its end when that checkpoint was made."""
    state = msgspec.json.decode((last / "trainer_state.json").read_bytes())
    return state["global_step"] >= state["max_steps"] or out_of_patience(state["log_history"], patience)


def seal(folder: Path) -> None:
    """Have all files of a checkpoint on disk, and say so."""
    digests = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != SEAL:
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
                digests[file.relative_to(folder).as_posix()] = _digest(opened)
    write_whole(folder / SEAL, Sealed(digests))
    _sync_folder(folder.parent)


def is_sealed(folder: Path) -> bool:
    """Whether the checkpoint is whole, and as it was sealed."""
    try:
        sealed = msgspec.json.decode((folder / SEAL).read_bytes(), type=Sealed)
        for name, digest in sealed.files.items():
            with (folder / name).open("rb") as opened:
                if _digest(opened) != digest:
                    return False
    except (OSError, msgspec.MsgspecError):
        return False
    return bool(sealed.files)


def write_whole(file: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    partial = file.with_name(f".{file.name}.partial")
    with partial.open("wb") as opened:
        opened.write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
        opened.flush()
        os.fsync(opened.fileno())
    partial.replace(file)


def sha256_of(file: Path) -> str:
    """In hexadecimal digits."""
    with file.open("rb") as opened:
        return _digest(opened)


def _digest(opened: Any) -> str:
    whole = hashlib.sha256()
    while piece := opened.read(_PIECE):
        whole.update(piece)
    return whole.hexdigest()


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TuningError(
            f"{file} cannot be read: {error.strerror}. Mind its rights, or give another --name."
        ) from error
    except msgspec.MsgspecError as error:
        raise TuningError(f"{file} cannot be read: {error}. Begin anew with --fresh.") from error
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> Iterator[str]:
    """The innermost keys in which they differ."""
    for key in sorted(one.keys() | other.keys()):
        mine, theirs = one.get(key), other.get(key)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            yield from differences(mine, theirs)
        elif mine != theirs:
            yield key


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
