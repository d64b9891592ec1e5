"""The whole conformance suite of the gateway, through a remote engine to a second gateway: only `endpoint` differs.

What one Interlace answers, another in front of it must answer too: streaming and not, tools, logprobs, embeddings, and
every refusal by the same name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.gateway.conftest import Endpoint, gateway  # noqa: F401 - the second one, a fixture
from tests.gateway.test_openai_conformance import *  # noqa: F403 - every test, and the fixtures they ask for
from tests.support.asking import gateway_to
from tests.support.gateway_thread import Gateway

MODELS = {"scripted": "scripted", "embedder": "embedder"}


@pytest.fixture(scope="module")
def front(gateway: Gateway) -> Iterator[Gateway]:  # noqa: F811 - the fixture that was imported
    """The gateway that callers see."""
    with gateway_to(f"{gateway.url}/v1", MODELS, gateway.key, extensions=True) as made:
        yield made


@pytest.fixture
def endpoint(front: Gateway) -> Endpoint:
    """The gateway in front, in the words of the conformance suite."""
    return Endpoint(f"{front.url}/v1", front.key, "scripted", "embedder")


def test_completion_echo_scores_the_prompt(complete: Any) -> None:
    """The one thing that does not go through: it is refused by name, not answered without."""
    with pytest.raises(openai.BadRequestError) as caught:
        complete(prompt="a b", echo=True, logprobs=1, max_tokens=1)
    assert caught.value.param == "echo"


def test_embeddings_dimensions(client: openai.OpenAI, endpoint: Endpoint) -> None:
    """How many numbers there are is the provider's; another number is refused by name."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=endpoint.embedding_model, input="a", dimensions=3)
    assert caught.value.param == "dimensions"


def test_both_gateways_bill_the_same(front: Gateway, gateway: Gateway, client: openai.OpenAI) -> None:  # noqa: F811
    """What the second gateway counted is what the first one records."""
    client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "one two three"}], n=2)
    client.embeddings.create(model="embedder", input=["one two", "three"])
    for event in (-2, -1):
        there, here = gateway.events[event], front.events[event]
        assert here.tokens == there.tokens
        assert here.tokens.prompt + here.tokens.embedding == 3
