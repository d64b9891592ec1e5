"""Random requests of the two endpoints that answer with numbers: embeddings, and counts of tokens.

Bodies come from the official SDKs' types. What a provider gets holds every input, in its order, and what it answers
reaches the SDK as it was; a count is asked of the provider in the words that the message itself would be.
"""

from __future__ import annotations

import base64
import json
from array import array
from collections.abc import Coroutine
from random import Random
from typing import Any

import httpx2 as httpx
import msgspec
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlace.engines.types import GenerateRequest, Sampling, Usage
from interlace.errors import InvalidRequest
from interlace.gateway.anthropic_messages import parse_count
from interlace.gateway.calls import Done
from interlace.gateway.openai_embeddings import parse_embedding
from tests.support.drawing import Draw, Json
from tests.support.provider_readers import ID, asked, read_anthropic
from tests.support.published import Record, body_of
from tests.support.published_drawing import Publisher, published
from tests.translation.test_requests import FAR, WIRES, _refused, _sent


def _fields(dialect: str) -> Any:
    shape = body_of(dialect)
    assert isinstance(shape, Record)
    return shape.fields


OF_A_COUNT = set(_fields("anthropic.count_tokens"))
EMBEDDERS = [name for name, far in FAR.items() if far.kind in {"openai", "gemini", "gemini 2"}]


def _ended(waiting: Coroutine[Any, Any, Any]) -> Any:
    """With a key at hand nothing is waited for."""
    try:
        waiting.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waited for something")


# --- embeddings --------------------------------------------------------------------------------------------------


def _inputs(draw: Draw) -> Any:
    def ids() -> list[int]:
        return [draw.random.randint(0, 200_000) for _ in range(draw.random.randint(1, 3))]

    count = range(draw.random.randint(1, 4))
    return draw.one((draw.text(), [draw.text() for _ in count], ids(), [ids() for _ in count]))


def _embedded(draw: Draw) -> Json:
    """A body as the types have it."""
    publisher = Publisher("openai.embeddings", draw, 0.4)
    return publisher.body() | {"model": "m", "input": _inputs(draw)}


def _sent_inputs(body: Json) -> list[Any]:
    """The inputs in a provider's request, as its published schema has them."""
    if "requests" in body:
        return ["".join(part["text"] for part in one["content"]["parts"]) for one in body["requests"]]
    return list(body["input"])


def _told(body: Json, rows: list[list[float]]) -> bytes:
    """What a provider answers."""
    if "requests" in body:
        return json.dumps({"embeddings": [{"values": row} for row in rows]}).encode()
    data = [
        {"object": "embedding", "index": i, "embedding": base64.b64encode(array("f", row).tobytes()).decode()}
        for i, row in enumerate(rows)
    ]
    usage = {"prompt_tokens": 7, "total_tokens": 7}
    return json.dumps({"object": "list", "data": data, "model": "m", "usage": usage}).encode()


def _through(random: Random) -> None:
    """One body to every provider that embeds, and its answer to the SDK."""
    draw = Draw(random, {})
    body = _embedded(draw)
    given = body["input"] if isinstance(body["input"], list) else [body["input"]]
    ids = isinstance(given[0], int)
    refused: set[Any] = set()
    for name in EMBEDDERS:
        ask, rendering = parse_embedding(json.dumps(body).encode(), ID, 1)
        assert ask.dimensions == body.get("dimensions")
        assert ask.unused == (("user",) if body.get("user") else ())
        assert ask.embed is not None
        wire = WIRES[name]
        try:
            sent = json.loads(_ended(wire.embed(ask.embed)).body)
        except InvalidRequest as error:
            refused.add((FAR[name].kind.partition(" ")[0], error.param))
            continue
        assert _sent_inputs(sent) == ([given] if ids else given), name
        rows = [[draw.random.randint(-99, 99) / 64 for _ in range(3)] for _ in ([given] if ids else given)]
        told = wire.embeddings(ask.embed, _told(sent, rows), 7)
        rendering.take([told])
        whole = rendering.whole(Done(Usage(told.prompt_tokens, 0)))
        transport = httpx.MockTransport(lambda _, whole=whole: httpx.Response(200, json=json.loads(whole)))  # type: ignore[misc]
        client = openai.OpenAI(
            api_key="k", base_url="http://127.0.0.1/v1", http_client=httpx.Client(transport=transport), max_retries=0
        )
        format = body.get("encoding_format", "float")
        answer = client.embeddings.create(model="m", input="?", encoding_format=format)
        assert [_numbers(one.embedding) for one in answer.data] == rows, name
        assert [one.index for one in answer.data] == list(range(len(rows)))
    assert refused == ({("gemini", "input")} if ids or isinstance(given[0], list) else set())


def _numbers(row: Any) -> list[float]:
    return array("f", base64.b64decode(row)).tolist() if isinstance(row, str) else row


@given(random=st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_input_is_embedded_and_every_row_comes_back(random: Random) -> None:
    """An input would be lost or change places on its way to a provider, or a row on its way back."""
    _through(random)


# --- counts ------------------------------------------------------------------------------------------------------


def _counted(random: Random) -> None:
    """What is counted is what the message would say, and Anthropic is asked to count it in those words."""
    message = published("anthropic.messages", random, exotic=0.0)
    body = {name: value for name, value in message.items() if name in OF_A_COUNT}
    (request,) = parse_count(json.dumps(body).encode(), ID).generate
    (said,) = asked("anthropic.messages", body | {"max_tokens": 1}).generate
    assert _prompt(request) == _prompt(said)
    wire = WIRES["anthropic"]
    if _refused(wire, said) is not None:
        return
    counted = json.loads(_ended(wire.count(request)).body)
    sent = json.loads(_sent(wire, said))
    assert set(counted) <= OF_A_COUNT
    assert counted == {name: value for name, value in sent.items() if name in counted}
    assert not (set(sent) - set(counted)) & OF_A_COUNT
    assert (
        _prompt(read_anthropic(json.dumps(counted | {"max_tokens": 1}).encode())).messages
        == _prompt(read_anthropic(json.dumps(sent).encode())).messages
    )


def _prompt(request: GenerateRequest) -> GenerateRequest:
    """Without what a count does not say: how the answer is chosen."""
    return msgspec.structs.replace(request, sampling=Sampling(), unset=())


@given(random=st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_count_is_of_what_the_message_says(random: Random) -> None:
    """A count that leaves out a tool, a picture or a mark would not be what is then billed."""
    _counted(random)


@pytest.mark.nightly
@given(random=st.randoms(use_true_random=False))
@settings(max_examples=4000, deadline=None, suppress_health_check=list(HealthCheck))
def test_embeddings_and_counts_all_night(random: Random) -> None:
    """As above, for the rare."""
    _through(random)
    _counted(random)
