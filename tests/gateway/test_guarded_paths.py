"""Every endpoint, streaming or not, guards its input and its output. A path that is missing here fails."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from interlace.ledger import Outcome
from tests.support.anthropic_shapes import ERROR, assembled, checked, events_of
from tests.support.gateway_thread import Gateway

DENIED = "please open sesame now"
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
RERANK, CLASSIFY = "/v1/rerank", "/v1/classify"
NUMBERS = {EMBEDDINGS: "embedder", RERANK: "reranker", CLASSIFY: "classifier"}  # each with the model that it asks
MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
RESPONSES = "/v1/responses"
TOOL = {"type": "function", "function": {"name": "f", "description": DENIED}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "open sesame"}'}}

# (path, streaming) → bodies whose input is denied
INPUTS: dict[tuple[str, bool], list[dict[str, Any]]] = {
    (CHAT, stream): [
        {"messages": [{"role": "user", "content": DENIED}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": DENIED}]}]},
        {"messages": [{"role": "system", "content": DENIED}, {"role": "user", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [CALL]}]},
        {"messages": [{"role": "user", "content": "x"}], "tools": [TOOL]},
        {
            "messages": [{"role": "user", "content": "x"}],
            "structured_outputs": {"regex": DENIED},
        },
        {"messages": [{"role": "user", "content": "long " * 5000}]},
    ]
    for stream in (False, True)
}
INPUTS |= {
    (COMPLETIONS, stream): [{"prompt": DENIED}, {"prompt": ["fine", DENIED]}, {"prompt": "long " * 5000}]
    for stream in (False, True)
}
INPUTS |= {
    (RESPONSES, stream): [
        {"input": DENIED},
        {"input": "x", "instructions": DENIED},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": DENIED}]}]},
        {"input": "x", "tools": [{"type": "function", "name": "f", "description": DENIED}]},
        {"input": "x", "text": {"format": {"type": "json_schema", "name": "x", "schema": {"title": DENIED}}}},
        {"input": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": DENIED}]}]},
        {"input": "x", "metadata": {"note": DENIED}},
        {"input": "x", "background": True, "instructions": DENIED},
    ]
    for stream in (False, True)
}
INPUTS[EMBEDDINGS, False] = [{"input": DENIED}, {"input": ["fine", DENIED]}, {"input": [1, 2]}]
INPUTS[CLASSIFY, False] = [{"input": DENIED}, {"input": ["fine", DENIED]}]
INPUTS[RERANK, False] = [
    {"query": DENIED, "documents": ["x"]},
    {"query": "x", "documents": ["fine", DENIED]},
    {"query": "x", "documents": ["fine", {"text": DENIED}]},
]


def _blocks(*blocks: dict[str, Any], role: str = "user") -> dict[str, Any]:
    turns = [{"role": role, "content": list(blocks)}]
    return {"messages": [*turns, {"role": "user", "content": "x"}] if role == "assistant" else turns}


ANTHROPIC: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": DENIED}]},
    {"messages": [{"role": "user", "content": "x"}], "system": DENIED},
    {"messages": [{"role": "user", "content": "x"}], "system": [{"type": "text", "text": DENIED}]},
    {"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": DENIED}]},
    {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": DENIED}]},  # a prefill
    _blocks({"type": "text", "text": DENIED}),
    _blocks({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": DENIED}}),
    _blocks({"type": "tool_result", "tool_use_id": "1", "content": DENIED}),
    _blocks({"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": DENIED}]}),
    _blocks({"type": "tool_use", "id": "1", "name": "f", "input": {"a": DENIED}}, role="assistant"),
    _blocks({"type": "thinking", "thinking": DENIED, "signature": "s"}, role="assistant"),
    {
        "messages": [{"role": "user", "content": "x"}],
        "tools": [{"name": "f", "description": DENIED, "input_schema": {}}],
    },
    {"messages": [{"role": "user", "content": "long " * 5000}]},
]
INPUTS |= {(MESSAGES, stream): [{"max_tokens": 9, **body} for body in ANTHROPIC] for stream in (False, True)}
INPUTS[COUNT, False] = ANTHROPIC

# (path, streaming) → a body whose answer, from the model "leaky", is denied
OUTPUTS: dict[tuple[str, bool], dict[str, Any]] = {
    **{(CHAT, stream): {"messages": [{"role": "user", "content": "x"}]} for stream in (False, True)},
    **{(COMPLETIONS, stream): {"prompt": ["x", "y"], "n": 2} for stream in (False, True)},
    **{
        (MESSAGES, stream): {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9}
        for stream in (False, True)
    },
    **{(RESPONSES, stream): {"input": "x"} for stream in (False, True)},
}

# They ask no model; the lines of a batch do, and test_files_and_batches.py sends forbidden ones.
UNGUARDED = {"/v1/files", "/v1/batches", "/v1/batches/{id}/cancel", "/v1/responses/{id}/cancel"}

POSTS = [(path, stream) for path in (CHAT, RESPONSES, COMPLETIONS, MESSAGES) for stream in (False, True)]
POSTS += [*((path, False) for path in NUMBERS), (COUNT, False)]


def post(gateway: Gateway, path: str, body: dict[str, Any], *, stream: bool) -> httpx.Response:
    """Send a body, with `stream` where the endpoint has it."""
    sent = {**body, "stream": True} if stream else body
    return httpx.post(gateway.url + path, json=sent, headers=gateway.headers, trust_env=False, timeout=20)


def texts_and_ends(answer: httpx.Response) -> tuple[dict[int, str], dict[int, str]]:
    """Text and finish reason of each choice, whatever the endpoint and however it was sent."""
    texts: dict[int, str] = {}
    ends: dict[int, str] = {}
    if "event-stream" in answer.headers["content-type"]:
        events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    else:
        events = [answer.text]
    if answer.request.url.path == MESSAGES:
        message = assembled(events_of(answer.text)) if len(events) > 1 else answer.json()
        ended = "content_filter" if message["stop_reason"] == "refusal" else message["stop_reason"]
        return {0: "".join(block["text"] for block in message["content"])}, {0: ended}
    for event in map(json.loads, events):
        if "choices" not in event:  # a response, or one of its events
            response = event if event.get("object") == "response" else event.get("response", {})
            for item in response.get("output", ()):
                texts[0] = "".join(part["text"] for part in item["content"])
            ends |= {0: response["incomplete_details"]["reason"]} if response.get("incomplete_details") else {}
            continue
        for choice in event["choices"]:
            said = choice.get("text") or (choice.get("delta") or choice.get("message") or {}).get("content") or ""
            texts[choice["index"]] = texts.get(choice["index"], "") + said
            if choice["finish_reason"]:
                ends[choice["index"]] = choice["finish_reason"]
    return texts, ends


def test_the_tables_name_every_path(gateway: Gateway) -> None:
    """A new POST endpoint of the application must appear in both tables (embeddings and counts have no output text)."""
    document = httpx.get(f"{gateway.url}/openapi.json", trust_env=False).json()
    posts = {path for path, item in document["paths"].items() if "post" in item} - UNGUARDED
    streams = {
        path for path in posts if "text/event-stream" in document["paths"][path]["post"]["responses"]["200"]["content"]
    }
    expected = {(path, stream) for path in posts for stream in ((False, True) if path in streams else (False,))}
    assert set(INPUTS) == expected
    assert set(OUTPUTS) == expected - {*((path, False) for path in NUMBERS), (COUNT, False)}


@pytest.mark.parametrize(("path", "stream"), POSTS)
def test_denied_input_is_refused(gateway: Gateway, path: str, stream: bool) -> None:
    """400 with OpenAI's `content_filter` (Anthropic has no code for it), never a stream, no token billed, the engine
    never asked."""
    for body in INPUTS[path, stream]:
        model = NUMBERS.get(path, "scripted")
        engine: Any = gateway.engines[model]
        asked, recorded = len(engine.seen), len(gateway.events)
        answer = post(gateway, path, {"model": model, **body}, stream=stream)
        assert answer.status_code == 400, body
        if path.startswith(MESSAGES):
            assert checked(ERROR, answer.content).error.type == "invalid_request_error"
        else:
            assert answer.json()["error"]["code"] == "content_filter"
        assert len(engine.seen) == asked
        assert len(gateway.events) == recorded, "what used nothing leaves no usage event"


@pytest.mark.parametrize(("path", "stream"), list(OUTPUTS))
def test_denied_output_is_never_sent(gateway: Gateway, path: str, stream: bool) -> None:
    """The clean text before the match stays, every choice ends with `content_filter`, work stops, usage is billed."""
    engine: Any = gateway.engines["leaky"]
    before = engine.cancelled
    answer = post(gateway, path, {"model": "leaky", **OUTPUTS[path, stream]}, stream=stream)
    texts, ends = texts_and_ends(answer)
    assert answer.status_code == 200
    assert set(texts.values()) == {"Well, "}
    assert set(ends.values()) == {"content_filter"}
    assert "sesame" not in answer.text
    prompts = 2 if path == COMPLETIONS else 1
    assert engine.cancelled == before + prompts
    event = gateway.events[-1]
    assert event.outcome is Outcome.FILTERED
    assert 0 < event.tokens.completion < 6 * len(texts)


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_of_token_ids_are_guarded_as_decoded(gateway: Gateway, stream: bool) -> None:
    """The scripted engine decodes id 7 as `t7`: a guard for that word must see it."""
    import regex

    from interlace.safety import Guards

    pipeline = gateway.pipeline
    object.__setattr__(pipeline, "guards", Guards(1000, (regex.compile("t7 t8"),)))
    try:
        answer = post(gateway, COMPLETIONS, {"model": "scripted", "prompt": [7, 8]}, stream=stream)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "content_filter"
        assert post(gateway, COMPLETIONS, {"model": "scripted", "prompt": [8, 7]}, stream=stream).status_code == 200
    finally:
        object.__setattr__(pipeline, "guards", Guards(20_000, (regex.compile("open sesame"),)))
