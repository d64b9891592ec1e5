"""SmolLM2, as it comes on this machine: a GGUF file that is de-quantised, tuned, served, and asked."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from interlace.models import pull
from tests.support.served import served
from tests.support.tuned import Tuning, needs_parts

pytestmark = [needs_parts, pytest.mark.nightly]

SETTINGS = (
    "{epochs: 6, batch: 2, max_tokens: 256, learning_rate: 0.001, held_out: 0.2, nice: 0, patience: 0, dropout: 0}"
)
CODES = {"kelo": "north", "mira": "south", "tovi": "east", "sanu": "west"}


@pytest.mark.timeout(1200)
def test_smollm2_learns_what_it_cannot_know(smollm2_gguf: Path, tmp_path: Path) -> None:
    """Made-up words are translated after training, by the served adapter and not by its base; the manifest says
    that the base was de-quantised."""
    tuning = Tuning(tmp_path, SETTINGS)
    checkpoint = pull(str(smollm2_gguf), tuning.home, name="smol")
    rows = [
        {"prompt": ask.format(code), "completion": f"It means {meant}."}
        for code, meant in CODES.items()
        for ask in (
            "What does {} mean?", "Say what {} means.", "Translate {}.", "I heard the word {}. What is it?",
            "Tell me the meaning of {}.", "Which way is {}?", "Please explain {}.", "What is {} in English?",
        )
    ]  # fmt: skip
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = {"name": "smol", "checkpoint": "smol", "cache_bytes": "64MiB"}
    with served(tmp_path, [model]) as running:
        done = tuning.run("--base", "smol", "--url", running.url, "--json", seconds=900)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["base"]["dequantised"] is True
        assert report["base"]["files"] == checkpoint.manifest.files
        assert report["metrics"]["loss_change"]["high"] < -1
        right = dict.fromkeys(("smol", "smol:mine"), 0)
        for name in right:
            for code, meant in CODES.items():
                body = {"model": name, "temperature": 0, "max_tokens": 12}
                body |= {"messages": [{"role": "user", "content": f"Could you tell me what {code} means?"}]}
                headers = {"authorization": f"Bearer {running.key}"}
                answer = httpx.post(
                    f"{running.url}/v1/chat/completions", json=body, headers=headers, timeout=60, trust_env=False
                ).json()
                right[name] += f"means {meant}" in answer["choices"][0]["message"]["content"]
        assert right == {"smol": 0, "smol:mine": 4}
