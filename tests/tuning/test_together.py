"""How the processes of a run meet, miss each other, and hand files on."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from interlace.errors import ConfigError
from interlace.tuning.folder import TuningError
from tests.support.served import patiently
from tests.support.serving import free_port
from tests.support.tuned import needs_parts

if TYPE_CHECKING:
    from torch.distributed import TCPStore

    from interlace.tuning.together import Group

pytestmark = needs_parts

# One of two machines. They gather what the second wrote, it fetches what the first has, and then the second dies while
# the first waits for it.
ONE_OF_TWO = """
import json, os, pathlib, signal, sys, threading
from interlace.tuning.endings import Ending
from interlace.tuning.settings import TuneSettings
from interlace.tuning.together import Group, told_as_lost
import torch.distributed as dist

rank, folder = int(sys.argv[1]), pathlib.Path(sys.argv[2])
group = Group(TuneSettings(launcher="ddp", machines=2, machine_rank=rank, main_address="127.0.0.1", join_seconds=60))
group.join({"seed": 1}, threading.Event(), print)
place = folder / "checkpoint-5"
group.gather(place)
here = group.fetch(place if rank == 0 else None, folder / "copies")
found = {file.relative_to(here).as_posix(): file.read_bytes().hex() for file in here.rglob("*.bin")}
print(json.dumps(found), flush=True)
print(group.most((7 << 40) + rank), flush=True)
try:
    with told_as_lost(2):
        dist.barrier()
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.barrier()
except Ending as ending:
    print(ending.kind, ending.message)
"""


# The other of two machines is hostile, in what it sends by hand.
HOSTILE = """
import os, pathlib, sys, threading
import msgspec, torch
import torch.distributed as dist
from interlace.tuning import together
from interlace.tuning.endings import Ending
from interlace.tuning.settings import TuneSettings

rank, folder = int(sys.argv[1]), pathlib.Path(sys.argv[2])
group = together.Group(TuneSettings(launcher="ddp", machines=2, machine_rank=rank, main_address="127.0.0.1"))
group.join({}, threading.Event(), print)

class Evil:
    def __reduce__(self):
        return os.mkdir, (str(folder / "evil"),)

def refused(act):
    try:
        act()
        print("taken")
    except (Ending, ValueError) as error:
        print(getattr(error, "kind", "wrong"), getattr(error, "message", error))

def send(*files):
    head = msgspec.json.encode([{"name": name, "size": size} for name, size in files])
    dist.send(torch.tensor([len(head)]), 0)
    dist.send(torch.tensor(list(head), dtype=torch.uint8), 0)

place = folder / "checkpoint-5"
if rank == 0:
    for name in (b"../../.ssh", b"checkpoint-5/../../..", b"/checkpoint-5", bytes([255])):
        together._told(name)
    dist.broadcast(torch.tensor([1 << 40]), 0)
    dist.broadcast_object_list([Evil()], src=0)
    dist.broadcast_object_list([{"rank": [torch.Size([2]), torch.float32, torch.ones(2)]}], src=0)
    for _ in range(6):
        refused(lambda: group.gather(place))
else:
    for _ in range(5):
        refused(lambda: group.fetch(None, folder / "copies"))
    refused(lambda: dist.broadcast_object_list([None], src=0))
    said = [None]
    dist.broadcast_object_list(said, src=0)
    print(said)
    for length in (1 << 40, -1):
        dist.send(torch.tensor([length]), 0)
    for files in ([("main.bin", 4)], [("big.bin", 1 << 60)], [("small.bin", -1)], [("fine.bin", 0), ("../a.bin", 4)]):
        send(*files)
dist.barrier()
"""


def test_what_a_hostile_machine_sends_is_refused(tmp_path: Path) -> None:
    """One machine of a cluster that has been taken must not write where it likes on another, run programs there, fill
    its memory or disk, or put its own weights in place of the main machine's."""
    port, running = free_port(), []
    for rank in range(2):
        place = tmp_path / str(rank) / "checkpoint-5"
        place.mkdir(parents=True)
        (place / "main.bin").write_bytes(b"main")
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", HOSTILE, str(rank), str(place.parent)], stdout=subprocess.PIPE,
                env=os.environ | _environment(rank, port), text=True,
            )
        )  # fmt: skip
    main, helper = (one.communicate(timeout=120)[0].splitlines() for one in running)
    assert [one.returncode for one in running] == [0, 0]
    names = ["'../../.ssh'", "'checkpoint-5/../../..'", "'/checkpoint-5'", "'\ufffd'"]
    assert helper[:4] == [f"unsound The main machine sends a checkpoint with the name {name}." for name in names]
    assert helper[4].startswith("unsound Another machine means to say 1099511627776 bytes at once")
    assert helper[5].endswith(".mkdir, which is no plain value.")
    assert helper[6] == "[{'rank': [torch.Size([2]), torch.float32, tensor([1., 1.])]}]"
    assert [line.split()[0] for line in main] == ["unsound", "unsound", "unsound", "disk_full", "unsound", "unsound"]
    assert "main.bin, which is in" in main[2]
    assert "size" in main[4]
    assert "'../a.bin'" in main[5]
    assert sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()) == [
        "0/checkpoint-5/main.bin", "1/checkpoint-5/main.bin",
    ]  # fmt: skip
    assert (tmp_path / "0/checkpoint-5/main.bin").read_bytes() == b"main"
    assert not list(tmp_path.glob("*/evil"))


def test_what_another_machine_sends_is_no_wrong_use_of_this_one() -> None:
    """Exit code 2 has a person look for a mistake in what they typed; a program would not try again. 2 is for settings,
    data and base as they are here."""
    from interlace.tuning.endings import UNSOUND
    from interlace.tuning.events import Failed
    from interlace.tuning.running import _failed

    assert isinstance(_failed(Failed("wrong", "seed: differs")), ConfigError)
    assert isinstance(_failed(Failed(UNSOUND, "Another machine sends a file")), TuningError)


def test_a_process_alone_is_not_held_for_one_of_another_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pod of Kubernetes's PyTorchJob, RANK is set: a single process would look for the others, and end."""
    from interlace.tuning.running import count_tokens
    from interlace.tuning.settings import TuneSettings
    from interlace.tuning.work import Base, Data, Work

    monkeypatch.setenv("RANK", "0")
    base = Base("tiny", str(tmp_path / "none"), "", "", 64, {}, None, "")
    settings = dataclasses.asdict(TuneSettings(name="mine"))
    with pytest.raises(TuningError) as told:
        count_tokens(Work(str(tmp_path), settings, base, Data([], [], "", ""), {}, 1))
    assert told.value.code == "failed"  # as told by the process, which has come as far as the base that is not there


def _environment(rank: int, port: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port)}  # fmt: skip


def test_files_go_to_the_main_machine_and_back_and_a_death_is_noticed(tmp_path: Path) -> None:
    """A part of a checkpoint that stays on another machine is missing when the run goes on; and who waits for a dead
    process would wait for ever."""
    port, running = free_port(), []
    parts = {"rng.bin": b"", "deep/part.bin": bytes(range(256)) * 100}
    for rank in range(2):
        place = tmp_path / str(rank) / "checkpoint-5"
        (place / "deep").mkdir(parents=True)
        for name, value in parts.items() if rank else [("main.bin", b"main")]:
            (place / name).write_bytes(value)
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", ONE_OF_TWO, str(rank), str(place.parent)], stdout=subprocess.PIPE,
                env=os.environ | _environment(rank, port), text=True,
            )
        )  # fmt: skip
    main, other = (one.communicate(timeout=120)[0].splitlines() for one in running)
    wanted = {name: value.hex() for name, value in parts.items()} | {"main.bin": b"main".hex()}
    assert json.loads(main[0]) == json.loads(other[0]) == wanted
    assert not (tmp_path / "1" / "checkpoint-5").exists()
    assert main[1] == other[1] == str((7 << 40) + 1), "the most of what they say, as of memory"
    assert main[2].startswith("peer_lost A process that learnt with this one has ended")
    assert running[1].returncode == -9


def _group(monkeypatch: pytest.MonkeyPatch, rank: int, port: int) -> Group:
    from interlace.tuning.settings import TuneSettings
    from interlace.tuning.together import Group

    for name, value in _environment(rank, port).items():
        monkeypatch.setenv(name, value)
    return Group(TuneSettings(launcher="ddp", machines=2, machine_rank=rank, main_address="a", join_seconds=1))


def test_a_machine_that_does_not_come_is_named_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait for so long and no longer, and hear whom to look after."""
    from interlace.tuning.endings import Ending

    began = time.monotonic()
    for rank, words in ((0, "machine_rank 1 is missing"), (1, "was not to be reached")):
        with pytest.raises(Ending) as ending:
            _group(monkeypatch, rank, free_port()).join({}, threading.Event(), print)
        assert words in ending.value.message
        assert "join_seconds" in ending.value.message
        stop = threading.Event()
        stop.set()
        with pytest.raises(Ending, match="halted"):  # ctrl-C does not wait
            _group(monkeypatch, rank, free_port()).join({}, stop, print)
    assert time.monotonic() - began < 30


def test_a_port_that_is_taken_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that is taken is a mistake of the block: the message names the field."""
    from interlace.tuning.endings import Ending

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(Ending, match="main_port"):
            _group(monkeypatch, 0, taken.getsockname()[1]).join({}, threading.Event(), print)


def _main_machine(port: int) -> TCPStore:
    import torch.distributed as dist

    return dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=dt.timedelta(seconds=10))


def test_machines_about_different_runs_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines with other data or settings would learn a mixture of both, without a word."""
    from interlace.tuning.endings import Ending

    port = free_port()
    store = _main_machine(port)
    store.set("identity", json.dumps({"settings": {"seed": 1}, "data": "x"}))
    store.set("joined/0", b"1")
    with pytest.raises(Ending, match="differ in seed"):
        _group(monkeypatch, 1, port).join({"settings": {"seed": 2}, "data": "x"}, threading.Event(), print)


def test_a_machine_that_falls_silent_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without power, a machine breaks no connection; its silence must end the wait of the others."""
    from interlace.tuning import together

    monkeypatch.setattr(together, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(together, "SILENT_SECONDS", 1.0)
    told: list[str] = []
    port = free_port()
    store = _main_machine(port)
    group = _group(monkeypatch, 0, port)
    beating = threading.Thread(target=group._beat, args=("127.0.0.1", port, told.append), daemon=True)
    beating.start()
    for count in range(30):
        store.set("beat/1", str(count))
        time.sleep(0.05)
    assert not told
    patiently(lambda: told)
    assert "machine_rank 1 has said nothing" in told[0]
