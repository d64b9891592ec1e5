"""The tutorial that tunes a model is true: its blocks run top to bottom, the adapter answers by its name, and the gain
is the one that the page tells.

By day the run is cut to two steps by the page's own EPOCHS; by night it is whole. It stands back for nobody, which is
all that is changed of its settings.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.serving import COMMAND, environment, free_port, serving
from tests.support.tuned import needs_parts

pytestmark = needs_parts

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/tutorial/specialise.md").read_text(encoding="utf-8")
BLOCKS: list[str] = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
CLOSE = 0.15  # nats: how near the losses of another machine come to those of the page


@pytest.mark.parametrize(
    "epochs", ["0.02", pytest.param("1", marks=[pytest.mark.nightly, pytest.mark.timeout(7200)])], ids=["cut", "whole"]
)
def test_a_reader_makes_a_model_of_ones_own_trade(epochs: str, smollm2_gguf: Path, tmp_path: Path) -> None:
    """Who pastes the page's blocks gets a plan, an adapter that the running server has at once, and another answer than
    the base's."""
    home = tmp_path / "home"
    home.mkdir()
    pull = [*COMMAND, "pull", str(smollm2_gguf), "--name", "smollm2-135m-instruct"]
    subprocess.run(pull, check=True, env=environment(home), timeout=120)
    folder = tmp_path / "examples/agri-advisor"
    shutil.copytree(ROOT / "examples/agri-advisor", folder)
    with (folder / "tune.yaml").open("a") as settings:
        settings.write("nice: 0\n")  # beside other tests it would otherwise wait for all of them
    with serving(home, free_port()) as there:
        marked = [f"echo '--- block'\n{block}" for block in BLOCKS]
        text = "\n".join(["set -euo pipefail", *marked]).replace("127.0.0.1:8080", there.url.removeprefix("http://"))
        text = text.replace("~/.interlace", str(home)).replace(".venv/bin/interlace", COMMAND[0])
        done = subprocess.run(
            ["bash", "-c", text], env={**environment(home), "INTERLACE_URL": there.url, "EPOCHS": epochs},
            cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=7000,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{there.log.read_text()}"
    _, _, base, plan, tuned, answer = done.stdout.split("--- block\n")
    assert "FLOP" in plan
    assert "this machine" in plan
    assert "Served now as smollm2-135m-instruct:agri." in tuned
    assert re.search(r"^ +time +[\d.]+ ", tuned, re.MULTILINE), tuned
    assert base.strip()
    assert answer.strip()
    metrics = json.loads((home / "tuning/agri/report.json").read_text())["metrics"]
    assert metrics["before"]["examples"] == 60
    before, after = map(float, re.findall(r"loss ([\d.]+) \([^)]*\) before, ([\d.]+)", PAGE)[0])
    assert metrics["before"]["loss"]["value"] == pytest.approx(before, abs=0.05)
    if epochs == "1":
        assert metrics["after"]["loss"]["value"] == pytest.approx(after, abs=CLOSE)
        assert metrics["loss_change"]["high"] < -0.5
        assert answer.strip() != base.strip()
