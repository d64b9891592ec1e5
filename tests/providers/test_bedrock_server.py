"""AWS's own SDK against the server on loopback: what it says is what Bedrock says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, EventStreamError

from tests.providers.servers.bedrock import ACCESS, REGION, SEALED, SECRET, Bedrock, running_bedrock

ARN = f"arn:aws:bedrock:{REGION}:123456789012:inference-profile/eu.anthropic.claude-sonnet-4-v1:0"
TOOLS = {"tools": [{"toolSpec": {"name": n, "inputSchema": {"json": {"type": "object"}}}} for n in ("weather", "now")]}


@pytest.fixture(scope="module")
def bedrock() -> Iterator[Bedrock]:
    """The server."""
    with running_bedrock() as running:
        yield running


def _client(bedrock: Bedrock, access: str = ACCESS, secret: str = SECRET) -> Any:
    return boto3.client(
        "bedrock-runtime",
        region_name=REGION,
        endpoint_url=bedrock.url,
        aws_access_key_id=access,
        aws_secret_access_key=secret,
        config=Config(retries={"total_max_attempts": 1}),
    )


def _user(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"text": text}]}]}


@pytest.mark.parametrize("model", ["anthropic.claude-3-haiku-20240307-v1:0", ARN])
def test_the_sdk_is_answered(bedrock: Bedrock, model: str) -> None:
    """Signature, path and answer are as boto3 makes and reads them, for an id and for an ARN."""
    answer = _client(bedrock).converse(modelId=model, **_user("words please"), inferenceConfig={"maxTokens": 5})
    assert answer["output"]["message"] == {"role": "assistant", "content": [{"text": "Grüße, world"}]}
    assert answer["stopReason"] == "end_turn"
    assert answer["usage"] == {"inputTokens": 12, "outputTokens": 7, "totalTokens": 19}
    assert bedrock.seen[-1][:2] == ("Converse", model)


def test_the_sdk_reads_the_stream(bedrock: Bedrock) -> None:
    """Messages of the event stream are cut and named as the SDK expects."""
    stream = _client(bedrock).converse_stream(modelId="m", **_user("thinks"))["stream"]
    events = list(stream)
    assert [next(iter(event)) for event in events][:2] == ["messageStart", "contentBlockDelta"]
    deltas = [event["contentBlockDelta"]["delta"] for event in events if "contentBlockDelta" in event]
    assert deltas[2] == {"reasoningContent": {"signature": "c2lnbmVk"}}
    assert deltas[3] == {"reasoningContent": {"redactedContent": b"sealed thought"}}
    assert events[-1]["metadata"]["usage"]["totalTokens"] == 19
    assert SEALED


def test_the_sdk_reads_calls(bedrock: Bedrock) -> None:
    """Two calls in one answer, one of them without input."""
    answer = _client(bedrock).converse(modelId="m", **_user("calls"), toolConfig=TOOLS)
    calls = [block["toolUse"] for block in answer["output"]["message"]["content"] if "toolUse" in block]
    assert [(call["toolUseId"], call["input"]) for call in calls] == [
        ("tooluse_1", {"city": "Zürich", "days": 10}),
        ("tooluse_2", {}),
    ]


def test_the_sdk_reads_errors(bedrock: Bedrock) -> None:
    """Refusals, and exceptions inside a stream, are those of the service's model."""
    client = _client(bedrock)
    with pytest.raises(client.exceptions.ThrottlingException):
        client.converse(modelId="m", **_user("throttled"))
    with pytest.raises(EventStreamError, match="throttlingException"):
        list(client.converse_stream(modelId="m", **_user("throttled-inside"))["stream"])
    with pytest.raises(ClientError, match="alternate"):
        client.converse(modelId="m", messages=_user("a")["messages"] * 2)


@pytest.mark.parametrize(
    ("access", "secret", "code"),
    [(ACCESS, "wrong", "InvalidSignatureException"), ("AKIDOTHER", SECRET, "UnrecognizedClientException")],
)
def test_a_wrong_key_is_refused(bedrock: Bedrock, access: str, secret: str, code: str) -> None:
    """The server looks at signatures: a server that let everybody in would prove nothing."""
    with pytest.raises(ClientError) as caught:
        _client(bedrock, access, secret).converse(modelId="m", **_user("words"))
    assert caught.value.response["Error"]["Code"] == code


def test_an_unknown_member_is_refused(bedrock: Bedrock) -> None:
    """The server holds bodies against the published model: members it does not know are refused."""
    client = _client(bedrock)
    client.meta.events.register(
        "before-call.bedrock-runtime.Converse",
        lambda params, **_: params.update(body=params["body"].replace(b'"messages"', b'"top_k": 1, "messages"')),
    )
    with pytest.raises(ClientError, match="top_k"):
        client.converse(modelId="m", **_user("words"))


def test_the_sdk_counts(bedrock: Bedrock) -> None:
    """CountTokens takes a conversation."""
    counted = _client(bedrock).count_tokens(modelId="m", input={"converse": _user("words")})
    assert counted["inputTokens"] > 0
