"""`examples/agri-desk` as its page says: all-MiniLM-L6-v2 learns which desk a question is for, as well as it is told
there, and is served."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from interlace.models import pull, resolve
from tests.support.served import served
from tests.support.serving import environment
from tests.support.tuned import needs_parts

pytestmark = [needs_parts, pytest.mark.nightly]

EXAMPLE = Path(__file__).parents[2] / "examples" / "agri-desk"
PAGE = (EXAMPLE / "README.md").read_text(encoding="utf-8")
_MEASURED = re.compile(r"^\| (accuracy|macro F1) \|.*\| \*\*([\d.]+) % \(([\d.]+) to ([\d.]+)\)\*\* \|$", re.MULTILINE)
_ASKED = re.compile(r"^\| (.+) \| `(\w+)` ([\d.]+) \|", re.MULTILINE)


@pytest.mark.timeout(1200)
def test_the_desk_is_learnt_as_well_as_the_page_tells(minilm: Path, tmp_path: Path) -> None:
    """The page's command comes to the page's figures within their intervals, far above the majority and chance; and
    the checkpoint that is served answers the page's questions as the page has it."""
    home, folder = tmp_path / "home", tmp_path / "agri-desk"
    home.mkdir()
    pull(str(minilm), home, name="all-minilm-l6-v2")
    shutil.copytree(EXAMPLE, folder)
    with (folder / "tune.yaml").open("a") as settings:
        settings.write("nice: 0\n")  # beside other tests it would otherwise wait for all of them
    command = [sys.executable, "-m", "interlace", "tune", "--config", str(folder / "tune.yaml"), "--json"]
    done = subprocess.run(
        command, env=environment(home), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=1000,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)["metrics"]
    before, after = metrics["before"], metrics["after"]
    majority = max(each["examples"] for each in after["by_label"]) / after["examples"]
    assert after["accuracy"]["low"] > max(before["accuracy"]["high"], majority + 0.4)
    figures = {name: [float(each) / 100 for each in numbers] for name, *numbers in _MEASURED.findall(PAGE)}
    for name, key in (("accuracy", "accuracy"), ("macro F1", "macro_f1")):
        _, low, high = figures[name]
        assert low <= after[key]["value"] <= high, (name, after[key])

    model = {"name": "agri-desk", "checkpoint": str(resolve("agri-desk", home).path), "threads": 1}
    asked = _ASKED.findall(PAGE)
    assert len(asked) >= 4
    (tmp_path / "served").mkdir()
    with served(tmp_path / "served", [model]) as running:
        answer = httpx.post(
            f"{running.url}/v1/classify", json={"model": "agri-desk", "input": [text for text, _, _ in asked]},
            headers={"authorization": f"Bearer {running.key}"}, trust_env=False, timeout=60,
        )  # fmt: skip
    assert answer.status_code == 200, answer.text
    for (text, label, sure), one in zip(asked, answer.json()["data"], strict=True):
        assert one["label"] == label, text
        assert max(one["probs"]) == pytest.approx(float(sure), abs=0.25), text
