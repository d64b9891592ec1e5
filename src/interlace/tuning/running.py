"""Starts the training process, hears what it tells, and says how it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from interlace.tuning.endings import out_of_memory
from interlace.tuning.events import AnyEvent, Failed, Finished, Stopped, decode
from interlace.tuning.folder import RunFolder, TuningError, write_whole
from interlace.tuning.work import Work

_LOG_CHARACTERS = 2000
# What the libraries would otherwise send or fetch; nothing of a run leaves the machine.
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "warning",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}


class Interrupted(TuningError):
    """The person stopped it; the same command goes on."""


def run_training(work: Work, folder: RunFolder, hear: Callable[[AnyEvent], None]) -> None:
    """Train to the end. Raises `TuningError` that says what to change, and `Interrupted` after ctrl-C."""
    write_whole(folder.path / "work.json", work)
    (folder.path / "work.json").chmod(0o600)  # it has the data in it
    threads = str(work.threads)
    env = os.environ | _QUIET | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
    with folder.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "interlace.tuning.worker", str(folder.path)],
            env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            start_new_session=True,  # ctrl-C is for us: we have it keep its step
        )  # fmt: skip
        try:
            last = _listen(process, hear)
        finally:
            _end(process)
            (folder.path / "work.json").unlink(missing_ok=True)
    if isinstance(last, Finished):
        return
    if isinstance(last, Stopped):
        raise Interrupted(f"Stopped at step {last.step}. The same command goes on there.")
    if isinstance(last, Failed):
        raise TuningError(last.message, code=last.kind)
    if process.returncode == -signal.SIGKILL:
        memory = out_of_memory(int(work.settings["max_tokens"]), int(work.settings["rank"])).message
        raise TuningError(
            f"The training process was killed, as the system does when memory is short. {memory}", code="killed"
        )
    raise TuningError(
        f"The training process ended by itself (exit code {process.returncode}). The last good checkpoint is kept. "
        f"It said:\n{_tail(folder.log)}",
        code="died",
    )


def _listen(process: subprocess.Popen[bytes], hear: Callable[[AnyEvent], None]) -> AnyEvent | None:
    """Hand on what is told; the last word, or None where there is none. The first ctrl-C asks it to stop after its
    step, the second ends it."""
    assert process.stdout is not None
    last: AnyEvent | None = None
    asked = False
    while True:
        try:
            line = process.stdout.readline()
            if not line:
                process.wait()
                return last
            event = decode(line)
            if isinstance(event, Failed | Finished | Stopped):
                last = event
            else:
                hear(event)
        except KeyboardInterrupt:
            if asked:
                raise Interrupted("Stopped. The same command goes on at the last checkpoint.") from None
            asked = True
            _ask_to_stop(process)
        except msgspec.MsgspecError:
            continue  # a line of a library's that went astray


def _ask_to_stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.write(b"stop\n")
        process.stdin.flush()


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        if process.stdin is not None:
            process.stdin.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _tail(log: Path) -> str:
    return log.read_bytes()[-_LOG_CHARACTERS:].decode(errors="replace").strip()
