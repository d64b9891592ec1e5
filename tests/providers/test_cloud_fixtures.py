"""Answers as the providers publish them, read by our readers, and held against the providers' own types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.parsers import create_parser
from google.genai import types

from interlace.engines.remote.providers.bedrock_answer import ConverseAnswer
from interlace.engines.remote.providers.vertex_answer import GeminiAnswer
from interlace.engines.types import Event, Usage
from tests.support.asking import calls_of, chat, finishes, text_of

FIXTURES = Path(__file__).parent / "fixtures"
BEDROCK, VERTEX = (json.loads((FIXTURES / f"{name}.json").read_text())["examples"] for name in ("bedrock", "vertex"))


def _read(example: dict[str, Any], answer: ConverseAnswer | GeminiAnswer) -> list[Event]:
    events: list[Event] = []
    for payload in example["payloads"]:
        events += answer.take(json.dumps(payload).encode())
    return [*events, *answer.end(told=False)]


@pytest.mark.parametrize(
    ("example", "kind"),
    [(one, ConverseAnswer) for one in BEDROCK] + [(one, GeminiAnswer) for one in VERTEX],
    ids=lambda value: value["name"] if isinstance(value, dict) else value.__name__,
)
def test_published_answers_are_read(example: dict[str, Any], kind: type[Any]) -> None:
    """Text, calls, end and usage of each published answer are what its provider says they are."""
    assert example["source"]
    events = _read(example, kind(chat("a prompt that is long enough for its count " * 50), 10))
    assert text_of(events) == example["text"]
    assert finishes(events) == [example["finish"]]
    calls = [(id, name, json.loads(arguments)) for id, name, arguments in calls_of(events)]
    assert calls == [(id, name, json.loads(arguments)) for id, name, arguments in example.get("calls", [])]
    assert events[-1] == Usage(**example["usage"])


@pytest.mark.parametrize("example", BEDROCK, ids=lambda example: example["name"])
def test_bedrocks_examples_are_of_its_model(example: dict[str, Any]) -> None:
    """AWS's own parser knows every member that an example has: an invented one would prove nothing."""
    model = botocore.session.Session().get_service_model("bedrock-runtime")
    for payload in example["payloads"]:
        if "output" in payload:
            shape, told = model.operation_model("Converse").output_shape, payload
        else:
            name = next(iter(payload))
            shape, told = (
                model.operation_model("ConverseStream").output_shape.members["stream"].members[name],
                payload[name],
            )
        answer = {"body": json.dumps(told).encode(), "headers": {}, "status_code": 200}
        parsed = create_parser("rest-json").parse(answer, shape)
        parsed.pop("ResponseMetadata", None)
        assert parsed == told


@pytest.mark.parametrize("example", VERTEX, ids=lambda example: example["name"])
def test_geminis_examples_are_of_its_types(example: dict[str, Any]) -> None:
    """Google's own types, which refuse unknown members, take every example."""
    for payload in example["payloads"]:
        assert types.GenerateContentResponse.model_validate_json(json.dumps(payload))
