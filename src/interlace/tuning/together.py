"""How the processes of a run find each other, notice when one has gone, and hand files to the main machine.

The state of a run lies on the main machine alone. What another machine's processes write of a checkpoint goes there
before it is sealed; when the run goes on, each machine is sent the checkpoint. So folders need not be shared, and any
machine but the main one can be replaced.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from interlace.tuning.endings import HALTED, LOST, UNSOUND, Ending, check_room
from interlace.tuning.folder import CHECKPOINT, differences
from interlace.tuning.plain import read_plainly
from interlace.tuning.settings import TuneSettings

BEAT_SECONDS, SILENT_SECONDS = 2.0, 60.0
# A wait that is longer than any honest one. Who dies is noticed sooner: by a broken connection, or by silence.
_LONGEST = dt.timedelta(hours=12)
_TRY_SECONDS = 2.0
_PIECE = _MOST_SAID = 16 << 20
_SAFE = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9._/-]{0,200}")
_BROKEN = ("connection closed by peer", "connection reset by peer", "broken pipe", "nccl error", "connectfullmesh",
           "timed out waiting", "connection refused", "connection was likely closed", "failed to recv")  # fmt: skip


class Group:
    """All processes of a run. `everyone` is how many there are, `each` how many on a machine."""

    def __init__(self, settings: TuneSettings) -> None:
        self.settings = settings
        self.each, self.machines = settings.processes, settings.machines
        self.everyone = self.each * self.machines
        self.rank, self.local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
        self.main = settings.machine_rank == 0
        self._silence = threading.Event()

    # --- meeting -------------------------------------------------------------------------------------------------

    def join(self, identity: dict[str, Any], stop: threading.Event, lose: Callable[[str], None]) -> None:
        """Meet the others, within the time that the settings give, and make torch's process group. Raises `Ending`
        where they do not come, or are about something else. `lose` is called once a machine has fallen silent."""
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        until = time.monotonic() + self.settings.join_seconds
        store = self._store(host, port, until, stop)
        try:
            if self.rank == 0:
                store.set("identity", msgspec.json.encode(identity))
            store.set(f"joined/{self.rank}", b"1")
            self._wait(store, until, stop)
            theirs = msgspec.json.decode(store.get("identity"))
        except dist.DistError as error:
            raise self._unmet() from error
        if wrong := ", ".join(differences(theirs, identity)):
            raise Ending(
                "wrong",
                f"This machine's run is another than the main one's: they differ in {wrong}. Give every machine the "
                "same command, data and base.",
            )
        store.set_timeout(_LONGEST)
        if self.machines > 1 and self.local == 0:
            threading.Thread(target=self._beat, args=(host, port, lose), daemon=True).start()
        read_plainly()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=dist.PrefixStore("run", store), rank=self.rank, world_size=self.everyone, timeout=_LONGEST,
        )  # fmt: skip

    def _store(self, host: str, port: int, until: float, stop: threading.Event) -> dist.TCPStore:
        if self.rank == 0:
            listening = _listen(host, port)
            return dist.TCPStore(
                host, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach(),
                timeout=dt.timedelta(seconds=self.settings.join_seconds),
            )  # fmt: skip
        while True:
            _heed(stop)
            try:
                return dist.TCPStore(
                    host, port, is_master=False, wait_for_workers=False, timeout=dt.timedelta(seconds=_TRY_SECONDS)
                )
            except dist.DistError as error:
                if time.monotonic() > until:
                    raise self._unmet() from error
                time.sleep(0.2)

    def _wait(self, store: dist.TCPStore, until: float, stop: threading.Event) -> None:
        while missing := [rank for rank in range(self.everyone) if not store.check([f"joined/{rank}"])]:
            _heed(stop)
            if time.monotonic() > until:
                raise self._unmet(sorted({rank // self.each for rank in missing}))
            time.sleep(0.1)

    def _unmet(self, machines: Sequence[int] = ()) -> Ending:
        waited = f"within {self.settings.join_seconds} s (join_seconds)"
        if machines:
            who = ", ".join(map(str, machines))
            return Ending(
                "unmet",
                f"Not all machines came {waited}: machine_rank {who} is missing. See what the command says there, and "
                "give it again on every machine.",
            )
        return Ending(
            "unmet",
            f"The main machine, {os.environ['MASTER_ADDR']} port {os.environ['MASTER_PORT']}, was not to be reached "
            f"{waited}, or has ended. See what the command says there (machine_rank 0), and whether main_address and "
            "main_port are right and open to this machine. A run that has finished there needs no more of this one.",
        )

    # --- living and dying ----------------------------------------------------------------------------------------

    def _beat(self, host: str, port: int, lose: Callable[[str], None]) -> None:
        """Say that this machine is there, and see that the others are. What a broken connection does not show, silence
        does: a machine without power, a network cut in two."""
        me, seen = self.settings.machine_rank, {}
        others = [machine for machine in range(self.machines) if machine != me]
        now = time.monotonic()
        seen = dict.fromkeys(others, (b"", now))
        try:
            store = dist.TCPStore(
                host, port, is_master=False, wait_for_workers=False, timeout=dt.timedelta(seconds=SILENT_SECONDS)
            )
            count = 0
            while not self._silence.wait(BEAT_SECONDS):
                count += 1
                store.set(f"beat/{me}", str(count))
                now = time.monotonic()
                for machine in others:
                    said = store.get(f"beat/{machine}") if store.check([f"beat/{machine}"]) else b""
                    if said != seen[machine][0]:
                        seen[machine] = said, now
                    elif now - seen[machine][1] > SILENT_SECONDS:
                        lose(f"machine_rank {machine} has said nothing for {SILENT_SECONDS:.0f} s")
                        return
        except dist.DistError:
            time.sleep(BEAT_SECONDS)  # what the main machine's end has broken elsewhere is told there, and better
            if not self._silence.is_set():
                lose("the main machine has gone")

    def part(self) -> None:
        """All have done their work: from here on, who ends is not missed."""
        self._silence.set()
        dist.barrier()
        dist.destroy_process_group()

    def most(self, number: int) -> int:
        """The largest of what the processes say here. For all to call."""
        said = torch.tensor([number])
        dist.all_reduce(said, dist.ReduceOp.MAX)
        return int(said)

    # --- files ---------------------------------------------------------------------------------------------------

    def gather(self, place: Path) -> None:
        """Bring what other machines have written at `place` to the main machine, and remove it there. For all to call,
        once all have written. Raises `Ending` where two machines have files of one name."""
        for machine in range(1, self.machines):
            first = machine * self.each
            if self.rank == first:
                _send(place, 0)
                shutil.rmtree(place, ignore_errors=True)
            elif self.rank == 0:
                _receive(place, first)

    def fetch(self, last: Path | None, checkpoints: Path) -> Path | None:
        """The checkpoint to go on from, which the main machine knows as `last`: on another machine, its copy."""
        name = _told(b"" if last is None else last.name.encode()).decode(errors="replace")
        if name and not CHECKPOINT.fullmatch(name):  # it becomes a path here
            raise Ending(UNSOUND, f"The main machine sends a checkpoint with the name {name[:80]!r}.")
        here = last
        if not self.main:
            if self.local == 0:
                shutil.rmtree(checkpoints, ignore_errors=True)
            here = checkpoints / name if name else None
        for machine in range(1, self.machines if name else 1):
            if self.rank == 0 and last is not None:
                _send(last, machine * self.each)
            elif self.rank == machine * self.each and here is not None:
                _receive(here, 0)
        dist.barrier()
        return here


def lost(error: BaseException) -> bool:
    """Whether the error of a library says that another process has gone."""
    text = f"{type(error).__name__} {error}".lower()
    return any(words in text for words in _BROKEN)


def gone(what: str, machines: int) -> Ending:
    """A process has gone, and the others cannot go on without it."""
    where = "on this machine or another; see what the command says on each" if machines > 1 else "see the log"
    again = "give the same command again on every machine" if machines > 1 else "give the same command again"
    return Ending(LOST, f"{what} ({where}). The others cannot go on alone. The last good checkpoint is kept: {again}.")


def _heed(stop: threading.Event) -> None:
    if stop.is_set():
        raise Ending(HALTED, "Stopped before all had met. The same command begins there.")


def _listen(host: str, port: int) -> socket.socket:
    """At that address and no other: whoever reaches it could take part."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise Ending(
            "wrong", f"main_address: {host} is not known here: {error.strerror}. Write an IP address."
        ) from error
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(1024)
    except OSError as error:
        listening.close()
        if isinstance(error, PermissionError) or "in use" in str(error):
            raise Ending("wrong", f"main_port: {port} cannot be had here: {error.strerror}. Choose another.") from error
        raise Ending(
            "wrong",
            f"main_address: {host} is no address of this machine ({error.strerror}), which is the main one "
            "(machine_rank 0). Write the address by which the others reach it.",
        ) from error
    return listening


# --- bytes -------------------------------------------------------------------------------------------------------


class _Named(msgspec.Struct, frozen=True):
    name: str
    size: Annotated[int, msgspec.Meta(ge=0)]


def _told(said: bytes) -> bytes:
    """What rank 0 says, to all."""
    size = torch.tensor([len(said)])
    dist.broadcast(size, 0)
    _check_length(int(size))
    value = torch.tensor(list(said) if said and dist.get_rank() == 0 else [0] * int(size), dtype=torch.uint8)
    if int(size):
        dist.broadcast(value, 0)
    return bytes(value.tolist())


def _send(folder: Path, to: int) -> None:
    """The files under a folder, with their names and sizes first."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    named = [_Named(file.relative_to(folder).as_posix(), file.stat().st_size) for file in files]
    head = msgspec.json.encode(named)
    dist.send(torch.tensor([len(head)]), to)
    dist.send(torch.tensor(list(head), dtype=torch.uint8), to)
    for file, one in zip(files, named, strict=True):
        with file.open("rb") as opened:
            for size in _pieces(one.size):
                dist.send(torch.frombuffer(bytearray(opened.read(size)), dtype=torch.uint8), to)


def _receive(folder: Path, source: int) -> None:
    """What `_send` sends. Nothing that is there is written over, and nothing is begun that the disk cannot hold."""
    size = torch.zeros(1, dtype=torch.int64)
    dist.recv(size, source)
    _check_length(int(size))
    head = torch.zeros(int(size), dtype=torch.uint8)
    dist.recv(head, source)
    try:
        named = msgspec.json.decode(bytes(head.tolist()), type=list[_Named])
    except msgspec.MsgspecError as error:
        raise Ending(UNSOUND, f"Another machine's list of files cannot be read: {error}.") from error
    if wrong := [one.name for one in named if not _SAFE.fullmatch(one.name)]:
        raise Ending(UNSOUND, f"A file that another machine sends has the name {wrong[0][:80]!r}.")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_room(folder, sum(one.size for one in named))
    for one in named:
        file = folder / one.name
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            opened = file.open("xb")
        except (FileExistsError, NotADirectoryError) as error:
            raise Ending(UNSOUND, f"Another machine sends {one.name[:80]}, which is in {folder} already.") from error
        with opened:
            for count in _pieces(one.size):
                piece = torch.empty(count, dtype=torch.uint8)
                dist.recv(piece, source)
                opened.write(piece.numpy())


def _check_length(size: int) -> None:
    if not 0 <= size <= _MOST_SAID:
        raise Ending(UNSOUND, f"Another machine means to say {size} bytes at once, which no part of a run does.")


def _pieces(size: int) -> Iterator[int]:
    while size > 0:
        yield min(size, _PIECE)
        size -= _PIECE


def share_on_processors() -> None:
    """Have accelerate share a model out by FSDP2 between processors, too, where that is the launcher; to be called
    before it is asked to. torch's FSDP2 can, but accelerate looks for GPUs, and else gives each process the whole model
    without a word; so our processors pass for such."""
    state = PartialState()
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU


def mind_sharing(plugin: Any, model: Any) -> None:
    """Have FSDP2 share out a model's layers, and not what transformers names beside them as a part of its own:
    accelerate shares the embeddings of words by themselves, and those of BERT and RoBERTa would be shared twice, which
    fails. And have it add gradients up, and say what comes out, in float32, as one process does: accelerate has it in
    the precision of the run throughout."""
    if (policy := plugin.mixed_precision_policy) is not None:
        plugin.mixed_precision_policy = MixedPrecisionPolicy(policy.param_dtype, torch.float32, torch.float32)
    words = model.get_input_embeddings()
    around = {type(each).__name__ for each in model.modules() if any(one is words for one in each.modules())}
    plugin.transformer_cls_names_to_wrap = sorted(set(model._no_split_modules or ()) - around)


def check_shared(model: Any) -> None:
    """Raise `Ending` where FSDP2 is the launcher and this process has not a part of the weights, but all."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not isinstance(next(model.parameters()), DTensor):
        raise Ending(
            "wrong",
            "launcher: fsdp2 does not come about with this release of accelerate: each process would have the whole "
            "model. Write ddp, which does just that, or install the release that constraints.txt names.",
        )


@contextlib.contextmanager
def told_as_lost(machines: int) -> Iterator[None]:
    """Have an error that another process's end has caused say so."""
    try:
        yield
    except Ending:
        raise
    except Exception as error:
        if lost(error):
            raise gone("A process that learnt with this one has ended", machines) from error
        raise
