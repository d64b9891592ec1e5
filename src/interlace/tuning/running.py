"""Starts the training process, hears what it tells, and says how it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from interlace.tuning.endings import out_of_memory
from interlace.tuning.events import AnyEvent, Counted, Failed, Finished, Stopped, Trained, decode
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
    "TQDM_DISABLE": "1",  # the log is for reading
}


class Interrupted(TuningError):
    """The person stopped it; the same command goes on."""


def run_training(work: Work, folder: RunFolder, hear: Callable[[AnyEvent], None]) -> None:
    """Train to the end. Raises `TuningError` that says what to change, and `Interrupted` after ctrl-C."""
    ranks = range(int(work.settings["processes"]))
    while True:
        last = _one_part(work, folder, ranks, hear)
        if isinstance(last, Finished):
            return
        if not isinstance(last, Trained):
            raise _ending(last, work, folder)
        ranks = range(1)


def count_tokens(work: Work) -> int:
    """Of the examples to learn from, as the base reads them. Raises `TuningError`."""
    with tempfile.TemporaryDirectory() as scratch:
        write_whole(Path(scratch) / "work.json", work)
        (environment,) = environments_of(work, 1)
        done = subprocess.run(
            [sys.executable, "-m", "interlace.tuning.worker", scratch, "--count"],
            env=os.environ | _QUIET | environment, stdin=subprocess.DEVNULL, capture_output=True, check=False,
        )  # fmt: skip
    for line in reversed(done.stdout.splitlines()):
        event = decode(line)
        if isinstance(event, Counted):
            return event.tokens
        if isinstance(event, Failed):
            raise TuningError(event.message, code=event.kind)
    raise TuningError(f"The tokens could not be counted: {done.stderr[-_LOG_CHARACTERS:].decode(errors='replace')}")


def _one_part(work: Work, folder: RunFolder, ranks: range, hear: Callable[[AnyEvent], None]) -> AnyEvent | int | None:
    """Start the processes, and hear the first to its end; its last word, or an exit code where there is none."""
    resume = folder.last_sealed()
    task = folder.path / "work.json"
    write_whole(task, msgspec.structs.replace(work, resume="" if resume is None else str(resume)))
    task.chmod(0o600)  # it has the data in it
    environments = environments_of(work, len(ranks))
    with folder.log.open("ab") as log, contextlib.ExitStack() as ends:
        ends.callback(task.unlink, missing_ok=True)
        processes = []
        for environment in environments:
            process = subprocess.Popen(
                [sys.executable, "-m", "interlace.tuning.worker", str(folder.path)],
                env=os.environ | _QUIET | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                start_new_session=True,  # ctrl-C is for us: we have it keep its step
            )  # fmt: skip
            ends.callback(_end, process)
            processes.append(process)
        _watch(processes)
        last = _listen(processes[0], hear)
        if last is not None:
            return last
        codes = [process.wait() for process in processes]
        return next((code for code in codes if code not in (0, -signal.SIGKILL)), codes[0])


def _watch(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Where one of several fails, the others would wait for it for ever."""

    def watch() -> None:
        while None in (codes := [process.poll() for process in processes]):
            if any(codes):
                time.sleep(1.0)  # what the first has to say
                for process in processes:
                    with contextlib.suppress(OSError):
                        process.kill()
                return
            time.sleep(0.2)

    if len(processes) > 1:
        threading.Thread(target=watch, daemon=True).start()


def environments_of(work: Work, count: int) -> list[dict[str, str]]:
    """What each of so many processes is told: its place among them, and how they share the work, in accelerate's words;
    and that threads wait without turning."""
    threads = str(work.threads if count > 1 else work.threads * int(work.settings["processes"]))
    every = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
    if count == 1:
        return [every]
    every |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count)}
    every |= {"LOCAL_WORLD_SIZE": str(count), "ACCELERATE_USE_CPU": "true"}
    if work.settings["launcher"] == "fsdp2":
        every |= {
            "ACCELERATE_USE_FSDP": "true",
            "FSDP_VERSION": "2",
            "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
            "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
            "FSDP_RESHARD_AFTER_FORWARD": "true",
            "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
        }
    return [{**every, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ending(last: AnyEvent | int | None, work: Work, folder: RunFolder) -> TuningError:
    if isinstance(last, Stopped):
        return Interrupted(f"Stopped at step {last.step}. The same command goes on there.")
    if isinstance(last, Failed):
        return TuningError(last.message, code=last.kind)
    if last == -signal.SIGKILL:
        memory = out_of_memory(int(work.settings["max_tokens"]), int(work.settings["rank"])).message
        return TuningError(
            f"The training process was killed, as the system does when memory is short. {memory}", code="killed"
        )
    return TuningError(
        f"The training process ended by itself (exit code {last}). The last good checkpoint is kept. It said:\n"
        f"{_tail(folder.log)}",
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
            if isinstance(event, Failed | Finished | Stopped | Trained):
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
