"""`interlace bench` with a real model: every answer has every token, and the figures hang together."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.support.served import Served
from tests.support.serving import environment


def test_a_local_model_is_measured(real: Served) -> None:
    """Answers of a model of our own are of one length, so that rates of several streams can be compared; they are
    streamed token by token, and cost what the price says: nothing."""
    words = ("talker", "--streams", "1,3", "--tokens", "12", "--prompt-tokens", "40", "--rounds", "1", "--json")
    done = subprocess.run(
        [sys.executable, "-m", "interlace", "bench", *words, "--url", real.url],
        env=environment(real.folder / "home"), cwd=real.folder, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["engine"], told["stopped"], told["cost_nanos"], told["errors"]) == ("local", False, 0, [])
    assert [(level["streams"], level["answered"], level["tokens"]) for level in told["levels"]] == [
        (1, 1, 12), (3, 3, 36),
    ]  # fmt: skip
    for level in told["levels"]:
        assert 40 <= level["prompt_tokens"] / level["answered"] <= 120, "a word is about a token, beside the template"
        assert 1 <= level["tokens_per_piece"] < 2
        assert 0 < level["first_token_ms"]["p50"] <= 1000 * level["seconds"]
        assert level["stream_tokens_per_second"] > 0
    assert {event.outcome.value for event in real.usage()[-8:]} == {"finished"}
