"""The Anthropic conformance suite on a real checkpoint, and what only a real model shows: that a prefill goes on."""

from __future__ import annotations

from typing import Any

import anthropic
import openai
import pytest

from tests.gateway.conftest import Endpoint
from tests.gateway.test_anthropic_conformance import *  # noqa: F403 - every test, and the fixtures they ask for
from tests.support.served import Served

FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def messages(endpoint: Endpoint) -> Any:
    """`messages(turns, **more)`: a greedy message of a few tokens."""
    client = anthropic.Anthropic(base_url=endpoint.base_url[:-3], api_key=endpoint.key, max_retries=0)

    def send(turns: Any, **more: Any) -> Any:
        asked = {"model": "talker", "messages": turns, "max_tokens": 16, "extra_body": {"temperature": 0}}
        return client.messages.create(**{**asked, **more})

    yield send
    client.close()


def _prompt(usage: Any) -> int:
    """All tokens of the prompt: `input_tokens` leaves out those that were found in the cache."""
    return int(usage.input_tokens) + int(usage.cache_read_input_tokens)


@pytest.mark.parametrize("beginning", ["The capital of France is", "The capital of France"])
def test_a_prefill_goes_on(messages: Any, beginning: str) -> None:
    """The answer is the rest of what an unprompted answer says, from where the prefill ends, and not a new answer."""
    whole = messages(FRANCE).content[0].text
    assert whole == "The capital of France is Paris."
    answer = messages([*FRANCE, {"role": "assistant", "content": beginning}])
    assert beginning + answer.content[0].text == whole
    assert answer.stop_reason == "end_turn"


def test_a_prefill_in_blocks_with_a_stop(messages: Any) -> None:
    """Blocks are a prefill too, and stop sequences look at the answer alone: `France` stands in the prefill."""
    turn = {"role": "assistant", "content": [{"type": "text", "text": "The capital of France"}]}
    answer = messages([*FRANCE, turn], stop_sequences=["France", " Paris"])
    assert (answer.content[0].text, answer.stop_sequence) == (" is", " Paris")


def test_a_prefill_streams(endpoint: Endpoint) -> None:
    """Streamed, it goes on alike."""
    turns = [*FRANCE, {"role": "assistant", "content": "The capital of France is"}]
    with (
        anthropic.Anthropic(base_url=endpoint.base_url[:-3], api_key=endpoint.key) as client,
        client.messages.stream(model="talker", messages=turns, max_tokens=16, extra_body={"temperature": 0}) as stream,
    ):
        assert "".join(stream.text_stream) == " Paris."


def test_chat_goes_on_n_times(client: Any, endpoint: Endpoint) -> None:
    """OpenAI's dialect has it as `continue_final_message`: each of `n` choices goes on; without it, it is answered."""
    turns = [*FRANCE, {"role": "assistant", "content": "The capital of France is"}]
    with openai.OpenAI(base_url=endpoint.base_url, api_key=endpoint.key, max_retries=0) as chat:
        asked: dict[str, Any] = {"model": "talker", "messages": turns, "max_tokens": 16, "temperature": 0, "n": 2}
        answer = chat.chat.completions.create(**asked, extra_body={"continue_final_message": True})
        assert [choice.message.content for choice in answer.choices] == [" Paris.", " Paris."]
        assert chat.chat.completions.create(**asked).choices[0].message.content != " Paris."


def test_a_bill_is_what_the_answer_says(messages: Any, real: Served) -> None:
    """The ledger holds the very numbers of the answer's usage."""
    import httpx

    answer = messages(FRANCE)
    spent = httpx.get(f"{real.url}/v1/usage/{answer.id}", headers={"x-api-key": real.key}, trust_env=False).json()
    assert spent["tokens"]["prompt"] == _prompt(answer.usage)
    assert spent["tokens"]["completion"] == answer.usage.output_tokens
