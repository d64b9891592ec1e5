"""What is denied may begin in the text that an answer goes on from, which the caller wrote, and end in the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from interlace.config import GuardSettings, Settings
from interlace.engines.types import Delta
from interlace.ledger import Outcome
from tests.support.gateway_thread import Gateway, running_gateway
from tests.support.scripted_engine import ScriptedEngine

WORDS = "open sesame"
USER = {"role": "user", "content": "What opens it?"}

PATHS: dict[str, Callable[[str], dict[str, Any]]] = {
    "/v1/chat/completions": lambda before: {
        "messages": [USER, {"role": "assistant", "content": before}],
        "continue_final_message": True,
        "add_generation_prompt": False,
    },
    "/v1/messages": lambda before: {"messages": [USER, {"role": "assistant", "content": before}], "max_tokens": 50},
    "/v1/completions": lambda before: {"prompt": before},
}
"""Each path by which an answer goes on from a text, with that text."""


def _says(rest: str) -> ScriptedEngine:
    """Goes on with the rest, a letter at a time."""
    letters = tuple(Delta(tokens=1, text=letter) for letter in f"{rest} zq!")
    return ScriptedEngine(deltas=(*letters, Delta(finish_reason="stop")))


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A model for each place where the words may be split, and a clean one."""
    engines = {f"from-{at}": _says(WORDS[at:]) for at in range(1, len(WORDS))} | {"clean": _says("the door")}
    with running_gateway(Settings(guards=GuardSettings(deny=(WORDS,))), engines) as running:
        yield running


def ask(gateway: Gateway, path: str, model: str, before: str, *, stream: bool) -> str:
    """All that the caller gets to see."""
    body = {"model": model, "stream": stream, **PATHS[path](before)}
    answer = httpx.post(gateway.url + path, json=body, headers=gateway.headers, trust_env=False, timeout=20)
    assert answer.status_code == 200, answer.text
    return answer.text


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", PATHS)
def test_denied_words_split_between_both_are_caught(gateway: Gateway, path: str, stream: bool) -> None:
    """Wherever they are split: the caller, who has the first part, must not get the second."""
    for at in range(1, len(WORDS)):
        if WORDS[at - 1] == " " and path == "/v1/messages":
            continue  # a prefill may not end in a blank there
        told = ask(gateway, path, f"from-{at}", f"I say {WORDS[:at]}", stream=stream)
        assert "zq" not in told
        assert "content_filter" in told or "refusal" in told
        assert gateway.events[-1].outcome is Outcome.FILTERED


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", PATHS)
def test_what_came_before_is_not_shown_again(gateway: Gateway, path: str, stream: bool) -> None:
    """It is read with the answer, and is no part of it."""
    told = ask(gateway, path, "clean", "I kindly open", stream=stream)
    assert "kindly" not in told
    assert "zq" in told.replace('"}', "") or "q" in told
    assert gateway.events[-1].outcome is Outcome.FINISHED
