"""A finished adapter in service: by a running server at once, by the next one, in another's place."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from interlace.models import read_added
from tests.support.served import served
from tests.support.serving import environment
from tests.support.tuned import Tuning, needs_parts

pytestmark = needs_parts


def _again(whole: Tuning, folder: Path) -> Tuning:
    """The same, finished, in another home, where a model has the base."""
    shutil.copytree(whole.folder / "base", folder / "base")
    shutil.copytree(whole.home / "tuning", folder / "home" / "tuning")
    return Tuning(folder)


def _model(tuning: Tuning) -> dict[str, object]:
    return {"name": "tiny", "checkpoint": str(tuning.folder / "base"), "cache_bytes": "2MiB", "threads": 1}


def _chat(tuning: Tuning, url: str, model: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "interlace", "chat", model, "--url", url, "--max-tokens", "4"]
    return subprocess.run(
        command, cwd=tuning.folder, env=environment(tuning.home), input="the 1\n", capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip


def test_a_running_server_has_it_at_once(whole: Tuning, tmp_path: Path) -> None:
    """No restart: the command ends, and `interlace chat` answers by the adapter's name alone. The same command again
    changes nothing, and not for another owner; another adapter takes its place with --fresh alone."""
    tuning = _again(whole, tmp_path)
    with served(tmp_path, [_model(tuning)]) as running:
        done = tuning.run("--url", running.url, "--json")
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert (report["served_as"], report["served_now"]) == ("tiny:mine", True)
        said = _chat(tuning, running.url, "mine")
        assert said.returncode == 0, said.stderr
        assert tuning.run("--url", running.url).returncode == 0
        (entry,) = read_added(tuning.home)
        assert entry.owner != ""
        opened = tuning.run("--url", running.url, "--owner", "everybody", "--fresh")
        assert opened.returncode == 1
        assert (
            f"--owner: The tiny:mine that is served belongs to default ({entry.owner}), not to everybody"
            in opened.stderr
        )
        assert "is made" not in opened.stderr
        assert (tuning.path / "adapter").is_dir()
        refused = tuning.run("--url", running.url, "--epochs", "0.5")
        assert refused.returncode == 1
        assert read_added(tuning.home) == (entry,)
        other = tuning.run("--url", running.url, "--epochs", "0.5", "--fresh")
        assert other.returncode == 0, other.stderr
        (now,) = read_added(tuning.home)
        assert now.digest != entry.digest
        assert (now.model, now.name, now.owner) == (entry.model, entry.name, entry.owner)
        assert _chat(tuning, running.url, "tiny:mine").returncode == 0
        manifest = tuning.home / "adapters" / f"sha256-{now.digest}" / "manifest.json"
        assert json.loads(manifest.read_text())["settings"]["epochs"] == 0.5


def test_without_a_server_the_next_one_has_it(whole: Tuning, tmp_path: Path) -> None:
    """The entry is there before any server was; the next start serves it to the organisation that owns it. Who owns it
    must be there before an earlier run is thrown away."""
    tuning = _again(whole, tmp_path)
    with served(tmp_path, [_model(tuning)]):
        pass  # it leaves its configuration behind
    refused = tuning.run("--owner", "nobody", "--fresh")
    assert refused.returncode == 2
    assert "--owner: There is no organisation 'nobody'" in refused.stderr
    assert (tuning.path / "adapter").is_dir()
    done = tuning.run()
    assert done.returncode == 0, done.stderr
    assert "the next `interlace serve`" in done.stdout
    with served(tmp_path, [_model(tuning)]) as running:
        assert _chat(tuning, running.url, "mine").returncode == 0
