"""Starts the training process, hears what it tells, and says how it ended."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from interlace.errors import ConfigError, InterlaceError
from interlace.tuning.endings import HALTED, LOST, STOPPED, out_of_memory
from interlace.tuning.events import AnyEvent, Counted, Failed, Finished, Stopped, Trained, decode
from interlace.tuning.folder import RunFolder, TuningError, is_done, write_whole
from interlace.tuning.launch import environment_here, environments
from interlace.tuning.settings import TuneSettings, rows_together
from interlace.tuning.work import Work

_LOG_CHARACTERS = 2000
_LAST_WORDS_SECONDS = 5.0  # for the processes of a run in which one has failed
# What the libraries would otherwise send or fetch; nothing of a run leaves the machine.
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "warning",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TQDM_DISABLE": "1",  # the log is for reading
}


class Interrupted(TuningError):
    """The person stopped it; the same command goes on."""


def run_training(work: Work, folder: RunFolder, hear: Callable[[AnyEvent], None]) -> None:
    """Train to the end. Raises `ConfigError` where settings, data or base are wrong, and `TuningError` where it ends
    early, each with what to change; `Interrupted` after ctrl-C."""
    last = folder.last_sealed()
    patience = int(work.settings["patience"])
    together = work.settings["launcher"] != "single" and not (last and is_done(last, patience))
    while True:
        last_word = _one_part(work, folder, hear, together=together)
        if isinstance(last_word, Finished) or (isinstance(last_word, Trained) and work.settings["machine_rank"]):
            return
        if not isinstance(last_word, Trained):
            raise _ending(last_word, work, folder)
        together = False


def count_tokens(work: Work) -> Counted:
    """Those of the examples to learn from, as the base reads them. Raises as `run_training` does."""
    with tempfile.TemporaryDirectory() as scratch:
        write_whole(Path(scratch) / "work.json", work)
        (environment,) = environments(work.settings, work.threads, together=False)
        done = subprocess.run(
            [sys.executable, "-P", "-m", "interlace.tuning.worker", scratch, "--count"],
            env=environment_here() | _QUIET | environment, stdin=subprocess.DEVNULL, capture_output=True, check=False,
        )  # fmt: skip
    for line in reversed(done.stdout.splitlines()):
        event = decode(line)
        if isinstance(event, Counted):
            return event
        if isinstance(event, Failed):
            raise _failed(event)
    raise TuningError(f"The tokens could not be counted: {done.stderr[-_LOG_CHARACTERS:].decode(errors='replace')}")


def _one_part(
    work: Work, folder: RunFolder, hear: Callable[[AnyEvent], None], *, together: bool
) -> AnyEvent | int | None:
    """Start the processes, and hear the first to its end; its last word, or an exit code where there is none."""
    resume = folder.last_sealed()
    task = folder.path / "work.json"
    write_whole(task, msgspec.structs.replace(work, resume="" if resume is None else str(resume)))
    task.chmod(0o600)  # it has the data in it
    with folder.log.open("ab") as log, contextlib.ExitStack() as ends:
        ends.callback(task.unlink, missing_ok=True)
        processes = []
        for environment in environments(work.settings, work.threads, together=together):
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "interlace.tuning.worker", str(folder.path)],
                env=environment_here() | _QUIET | environment,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                start_new_session=True,  # ctrl-C is for us: we have it keep its step
            )  # fmt: skip
            ends.callback(_end, process)
            processes.append(process)
        fallen = _watch(processes)
        last = _listen(processes[0], hear)
        if last is not None and not isinstance(last, Failed):
            return last
        codes = [process.wait() for process in processes]
        return _reason(last, codes if fallen is None else fallen(), processes)


def _watch(processes: Sequence[subprocess.Popen[bytes]]) -> Callable[[], list[int | None]] | None:
    """Where one of several fails, the others would wait for it for ever. What is returned waits for that, and gives the
    exit codes of the moment when the first had failed."""
    first: list[int | None] = []

    def watch() -> None:
        while None in (codes := [process.poll() for process in processes]):
            if any(codes):
                first.extend(codes)
                until = time.monotonic() + _LAST_WORDS_SECONDS
                while None in (process.poll() for process in processes) and time.monotonic() < until:
                    time.sleep(0.05)
                for process in processes:
                    with contextlib.suppress(OSError):
                        process.kill()
                return
            time.sleep(0.05)
        first.extend(codes)

    if len(processes) == 1:
        return None
    watching = threading.Thread(target=watch, daemon=True)
    watching.start()

    def fallen() -> list[int | None]:
        watching.join()
        return first

    return fallen


def _reason(
    last: AnyEvent | None, codes: Sequence[int | None], processes: Sequence[subprocess.Popen[bytes]]
) -> AnyEvent | int | None:
    """Why a part failed: what the first process says, unless it only lost another of this machine, which was killed or
    says more."""
    if isinstance(last, Failed) and last.kind != LOST:
        return last
    for process in processes[1:]:
        assert process.stdout is not None
        for line in process.stdout.readlines():
            with contextlib.suppress(msgspec.MsgspecError):
                event = decode(line)
                if isinstance(event, Failed) and event.kind != LOST:
                    return event
    if -signal.SIGKILL in codes:
        return -signal.SIGKILL
    return last or next((code for code in codes if code), None)


def _ending(last: AnyEvent | int | None, work: Work, folder: RunFolder) -> InterlaceError:
    if isinstance(last, Stopped):
        return Interrupted(f"Stopped at step {last.step}. The same command goes on there.", code=STOPPED)
    if isinstance(last, Failed) and last.kind == HALTED:
        return Interrupted(last.message, code=HALTED)
    if isinstance(last, Failed):
        return _failed(last)
    if last == -signal.SIGKILL:
        settings = TuneSettings(**work.settings)
        memory = out_of_memory(settings, rows_together(settings, gpu=False)).message  # the machine's, not a GPU's
        return TuningError(
            f"The training process was killed, as the system does when memory is short. {memory}", code="killed"
        )
    return TuningError(
        f"The training process ended by itself (exit code {last}). The last good checkpoint is kept. It said:\n"
        f"{_tail(folder.log)}",
        code="died",
    )


def _failed(event: Failed) -> InterlaceError:
    """What people can mend before anything is learnt is told as all mistakes in settings and data are."""
    return ConfigError(event.message) if event.kind == "wrong" else TuningError(event.message, code=event.kind)


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
            if isinstance(event, Failed | Finished | Stopped | Trained):
                last = event
            else:
                hear(event)
        except KeyboardInterrupt:
            if asked:
                raise Interrupted("Stopped. The same command goes on at the last checkpoint.", code=STOPPED) from None
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
