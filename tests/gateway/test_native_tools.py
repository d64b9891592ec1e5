"""Tools that only one provider's models know pass to it and back, whole and streamed; guards read what is in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from interlace.config import ModelSettings, Settings
from interlace.config.settings import GuardSettings, SecretSettings
from interlace.engines.fields import check_fields
from interlace.engines.host.fields import LOCAL_FIELDS
from interlace.engines.remote.providers.openai_answer import OpenAIAnswer
from interlace.engines.remote.providers.openai_responses_answer import ResponsesAnswer
from interlace.engines.types import Delta, GenerateRequest, Message
from interlace.errors import InvalidRequest
from tests.support.gateway_thread import Gateway, running_gateway
from tests.support.provider_readers import asked
from tests.support.responding import KEY
from tests.support.scripted_engine import ScriptedEngine
from tests.translation.test_requests import WIRES, _sent

Json = dict[str, Any]
CHAT, RESPONSES, MESSAGES = "openai.chat", "openai.responses", "anthropic.messages"
ASKED = GenerateRequest("r", messages=(Message("user", "Hi"),))
GRAMMAR = {"syntax": "lark", "definition": 'start: "print"'}
ACTION: Json = {"commands": ["ls -l", 'echo "é"'], "timeout_ms": 1000, "max_output_length": None}
EXEC: Json = {"type": "exec", "command": ["ls"], "env": {"A": "b"}, "timeout_ms": None}
PATCH: Json = {"type": "update_file", "path": "a.py", "diff": "@@\n-a\n+b"}

# What the provider gets is what the caller wrote: (dialect, wire, field, as it is written).
PASSED: dict[str, tuple[str, str, Json]] = {
    "a custom tool in chat": (CHAT, "openai", {
        "tools": [{"type": "custom", "custom": {"name": "run", "description": "Runs.",
                                                "format": {"type": "grammar", "grammar": GRAMMAR}}},
                  {"type": "custom", "custom": {"name": "say", "format": {"type": "text"}}}],
        "tool_choice": {"type": "custom", "custom": {"name": "run"}},
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": None,
             "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "run", "input": 'print("é")'}}]},
            {"role": "tool", "content": "done", "tool_call_id": "c"},
        ],
    }),
    "a custom tool in responses": (RESPONSES, "openai, api: responses", {
        "tools": [{"type": "custom", "name": "run", "description": "Runs.", "format": {"type": "grammar", **GRAMMAR}}],
        "tool_choice": {"type": "custom", "name": "run"},
        "input": [
            {"type": "message", "role": "user", "content": "Hi"},
            {"type": "custom_tool_call", "call_id": "c", "name": "run", "input": 'print("é")'},
            {"type": "custom_tool_call_output", "call_id": "c", "output": "done"},
        ],
    }),
    "shells and patches": (RESPONSES, "openai, api: responses", {
        "tools": [{"type": "shell", "environment": {"type": "local"}}, {"type": "apply_patch"}],
        "tool_choice": {"type": "shell"},
        "input": [
            {"type": "message", "role": "user", "content": "Hi"},
            {"type": "shell_call", "call_id": "c", "action": ACTION, "status": "completed"},
            {"type": "shell_call_output", "call_id": "c", "max_output_length": 99, "status": "completed",
             "output": [{"stdout": "x", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}]},
            {"type": "apply_patch_call", "call_id": "d", "operation": PATCH, "status": "completed"},
            {"type": "apply_patch_call_output", "call_id": "d", "status": "failed", "output": "no such file"},
        ],
    }),
    "the local shell": (RESPONSES, "openai, api: responses", {
        "tools": [{"type": "local_shell"}],
        "input": [
            {"type": "message", "role": "user", "content": "Hi"},
            {"type": "local_shell_call", "id": "c", "call_id": "c", "action": EXEC, "status": "completed"},
            {"type": "local_shell_call_output", "id": "c", "call_id": "c", "output": "done", "status": "completed"},
        ],
    }),
    "thoughts of earlier turns": (RESPONSES, "openai, api: responses", {
        "input": [{"type": "message", "role": "user", "content": "Hi"}],
        "reasoning": {"effort": "low", "context": "all_turns"},
    }),
    "Anthropic's tools": (MESSAGES, "anthropic", {
        "tools": [{"type": "bash_20250124", "name": "bash"},
                  {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool", "max_characters": 99},
                  {"type": "memory_20250818", "name": "memory", "cache_control": {"type": "ephemeral"}},
                  {"type": "computer_20250124", "name": "computer", "display_width_px": 1024,
                   "display_height_px": 768, "display_number": 1}],
        "tool_choice": {"type": "tool", "name": "bash"},
        "max_tokens": 9,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
    }),
}  # fmt: skip


@pytest.mark.parametrize("case", PASSED)
def test_what_a_caller_writes_goes_to_its_provider(case: str) -> None:
    """Refused or bent, such a tool is lost to those whose models were made for it."""
    dialect, wire, body = PASSED[case]
    ask = asked(dialect, {"model": "m", **body})
    (request,) = ask.generate
    check_fields(request, WIRES[wire].fields, ask.words)
    got = json.loads(_sent(WIRES[wire], request))
    got["input"] = [
        {"type": "message", **item} if "role" in item else item for item in got.get("input", ())
    ] or got.get("input")
    assert {name: got[name] for name in body} == body


@pytest.mark.parametrize("case", PASSED)
def test_elsewhere_it_is_refused_by_name(case: str) -> None:
    """Another provider's models, or this machine's, would be shown a tool that they cannot use, or none at all."""
    dialect, home, body = PASSED[case]
    ask = asked(dialect, {"model": "m", **body})
    (request,) = ask.generate
    family = "openai" if home.startswith("openai") else home
    homes = {name for name in WIRES if name.startswith((family, "azure" if family == "openai" else family))}
    elsewhere = {name: wire.fields for name, wire in WIRES.items() if name not in homes} | {"local": LOCAL_FIELDS}
    for name, fields in elsewhere.items():
        with pytest.raises(InvalidRequest) as caught:
            check_fields(request, fields, ask.words)
        assert caught.value.status == 400, name
        first = (caught.value.param or "").replace("[]", "").partition(".")[0]
        assert first in body, f"{name}: {caught.value.param}"


# --- answers -----------------------------------------------------------------------------------------------------


def _events(*events: Json) -> list[bytes]:
    return [json.dumps(event).encode() for event in events]


def _item(name: str, at: int, /, **item: Any) -> Json:
    return {"type": f"response.output_item.{name}", "output_index": at, "item": item}


CUSTOM_ITEM = {"type": "custom_tool_call", "id": "ctc_1", "call_id": "c", "name": "run"}
SHELL_ITEM = {"type": "shell_call", "id": "sh_1", "call_id": "d", "action": ACTION, "status": "completed"}
PATCH_ITEM = {"type": "apply_patch_call", "id": "apc_1", "call_id": "e", "operation": PATCH, "status": "completed"}
ITEMS = [CUSTOM_ITEM | {"input": 'print("é")', "status": "completed"}, SHELL_ITEM, PATCH_ITEM]
DELTA = "response.custom_tool_call_input.delta"
STREAMED = _events(
    _item("added", 0, **CUSTOM_ITEM, input="", status="in_progress"),
    {"type": DELTA, "output_index": 0, "item_id": "ctc_1", "delta": "print("},
    {"type": DELTA, "output_index": 0, "item_id": "ctc_1", "delta": '"é")'},
    {"type": "response.custom_tool_call_input.done", "output_index": 0, "item_id": "ctc_1", "input": 'print("é")'},
    *(_item("done", at, **item) for at, item in enumerate(ITEMS)),
    {"type": "response.completed", "response": {"status": "completed", "output": ITEMS}},
)
WHOLE = _events({"object": "response", "status": "completed", "output": ITEMS})
CHAT_STREAMED = _events(
    {"choices": [{"index": 0, "delta": {"role": "assistant", "tool_calls": [
        {"index": 0, "id": "c", "type": "custom", "custom": {"name": "run", "input": ""}}]}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "custom": {"input": "print("}}]}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "custom": {"input": '"é")'}}]}}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
)  # fmt: skip
CHAT_WHOLE = _events(
    {"choices": [{"index": 0, "finish_reason": "tool_calls", "message": {"role": "assistant", "content": None,
     "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "run", "input": 'print("é")'}}]}}]},
)  # fmt: skip


def _read(answer: Any, payloads: list[bytes]) -> tuple[Delta, ...]:
    events = [event for payload in payloads for event in answer.take(payload)]
    events += answer.end(told=True)
    return tuple(event for event in events if isinstance(event, Delta))


def _calls(deltas: tuple[Delta, ...]) -> list[tuple[str, str, str, str]]:
    made: dict[int, list[str]] = {}
    for piece in (piece for delta in deltas for piece in delta.tool_calls):
        call = made.setdefault(piece.index, ["", "", "", ""])
        call[0], call[1], call[2] = piece.kind, piece.id or call[1], piece.name or call[2]
        call[3] += piece.arguments
    return [(call[0], call[1], call[2], call[3]) for call in made.values()]


RESPONSES_STREAMED = _read(ResponsesAnswer(ASKED, 3), STREAMED)
RESPONSES_WHOLE = _read(ResponsesAnswer(ASKED, 3), WHOLE)


def test_what_providers_answer_is_read_whole() -> None:
    """A call that is passed over leaves its caller with an answer that says nothing."""
    custom = ("custom", "c", "run", 'print("é")')
    assert _calls(_read(OpenAIAnswer(ASKED, 3), CHAT_STREAMED)) == [custom]
    assert _calls(_read(OpenAIAnswer(ASKED, 3), CHAT_WHOLE)) == [custom]
    for deltas in (RESPONSES_STREAMED, RESPONSES_WHOLE):
        first, shell, patch = _calls(deltas)
        assert first == custom
        assert (shell[0], json.loads(shell[3])) == ("shell_call", {"action": ACTION})
        assert (patch[0], json.loads(patch[3])) == ("apply_patch_call", {"operation": PATCH})
        assert deltas[-1].finish_reason == "tool_calls"


LEAKY = tuple(
    Delta(tokens=1, tool_calls=(piece,), finish_reason=None)
    for piece in _read(
        ResponsesAnswer(ASKED, 3),
        _events(
            _item("added", 0, **CUSTOM_ITEM, input=""),
            {"type": DELTA, "output_index": 0, "delta": f"key = {KEY[:20]}"},
            {"type": DELTA, "output_index": 0, "delta": f"{KEY[20:]} # so"},
            _item("done", 1, **SHELL_ITEM | {"action": {"commands": [f"export A={KEY}"]}}),
            {"type": "response.completed", "response": {"status": "completed"}},
        ),
    )
    for piece in piece.tool_calls
)


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """Engines that answer as the provider did; keys are masked both ways, two words are denied."""
    keeping = WIRES["openai, api: responses"].fields
    made = {
        "caller": ScriptedEngine(deltas=RESPONSES_STREAMED, fates=keeping),
        "leaky": ScriptedEngine(deltas=(*LEAKY, Delta(finish_reason="tool_calls")), fates=keeping),
        "local": ScriptedEngine(),
    }
    guards = GuardSettings(
        deny=("open sesame", 'open "sesame"'),
        secrets_input=SecretSettings(api_key="mask"),
        secrets_output=SecretSettings(api_key="mask"),
    )
    models = tuple(ModelSettings(name=name, checkpoint=name) for name in made)
    with running_gateway(Settings(models=models, guards=guards), made) as running:
        yield running


def _post(gateway: Gateway, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{gateway.url}/v1/{path}", json=body, headers=gateway.headers, trust_env=False, timeout=20)


def _told(answer: httpx.Response) -> list[Json]:
    lines = (line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {"))
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("stream", [False, True])
def test_responses_have_the_items_of_their_provider(gateway: Gateway, stream: bool) -> None:
    """Clients that were written for OpenAI's shell run nothing if the item is not as OpenAI has it."""
    answer = _post(gateway, "responses", model="caller", input="Hi", stream=stream)
    assert answer.status_code == 200, answer.text
    events = _told(answer) if stream else []
    body = events[-1]["response"] if stream else answer.json()
    items = [{name: value for name, value in item.items() if name != "id"} for item in body["output"]]
    for item, wanted in zip(items, ITEMS, strict=True):
        assert item.items() >= {name: value for name, value in wanted.items() if name != "id"}.items()
    if stream:
        deltas = [event["delta"] for event in events if event["type"] == DELTA]
        done = [event["input"] for event in events if event["type"] == "response.custom_tool_call_input.done"]
        assert ("".join(deltas), done) == ('print("é")', ['print("é")'])
        ends = [event["item"]["type"] for event in events if event["type"] == "response.output_item.done"]
        assert sorted(ends) == ["apply_patch_call", "custom_tool_call", "shell_call"]
    again = httpx.get(f"{gateway.url}/v1/responses/{body['id']}", headers=gateway.headers, trust_env=False).json()
    assert again["output"] == body["output"]
    replayed = httpx.get(
        f"{gateway.url}/v1/responses/{body['id']}?stream=true", headers=gateway.headers, trust_env=False
    )
    assert _told(replayed)[-1]["response"]["output"] == body["output"]


def test_a_conversation_goes_on_after_such_calls(gateway: Gateway) -> None:
    """What was stored is told to the provider again, so it must be read again."""
    first = _post(gateway, "responses", model="caller", input="Hi").json()
    outputs = [
        {"type": "custom_tool_call_output", "call_id": "c", "output": "done"},
        {"type": "shell_call_output", "call_id": "d", "output": []},
        {"type": "apply_patch_call_output", "call_id": "e", "status": "completed"},
    ]
    after = _post(gateway, "responses", model="caller", input=outputs, previous_response_id=first["id"])
    assert after.status_code == 200, after.text
    engine = gateway.engines["caller"]
    assert isinstance(engine, ScriptedEngine)
    request = engine.seen[-1]
    sent = json.loads(_sent(WIRES["openai, api: responses"], request))["input"]
    kinds = [item["type"] for item in sent if "type" in item]
    assert kinds[-6:] == [*(item["type"] for item in ITEMS), *(item["type"] for item in outputs)]
    page = httpx.get(
        f"{gateway.url}/v1/responses/{after.json()['id']}/input_items?order=asc",
        headers=gateway.headers,
        trust_env=False,
    )
    assert [item["type"] for item in page.json()["data"]] == [item["type"] for item in outputs]


@pytest.mark.parametrize("stream", [False, True])
def test_chat_answers_with_custom_calls(gateway: Gateway, stream: bool) -> None:
    """The same in the older dialect."""
    asked = {"model": "caller", "messages": [{"role": "user", "content": "Hi"}], "stream": stream}
    answer = _post(gateway, "chat/completions", **asked)
    if not stream:
        call = answer.json()["choices"][0]["message"]["tool_calls"][0]
        assert call == {"id": "c", "type": "custom", "custom": {"name": "run", "input": 'print("é")'}}
        return
    pieces = [
        piece
        for chunk in _told(answer)
        for choice in chunk["choices"]
        for piece in choice["delta"].get("tool_calls", ())
        if piece["index"] == 0
    ]
    assert (pieces[0]["id"], pieces[0]["type"], pieces[0]["custom"]["name"]) == ("c", "custom", "run")
    assert "".join(piece["custom"]["input"] for piece in pieces) == 'print("é")'


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["responses", "chat/completions"])
def test_guards_read_what_such_calls_hold(gateway: Gateway, path: str, stream: bool) -> None:
    """A key that a model writes into a script would leave by a door that nobody watches."""
    asked = {"input": "Hi"} if path == "responses" else {"messages": [{"role": "user", "content": "Hi"}]}
    answer = _post(gateway, path, model="leaky", stream=stream, **asked)
    assert answer.status_code == 200
    assert "export A=" in answer.text or path != "responses"
    assert KEY not in answer.text
    assert KEY[20:] not in answer.text


ASKED_WITH: dict[str, tuple[str, Json]] = {
    "a custom call": ("responses", {"input": [
        {"role": "user", "content": "Hi"},
        {"type": "custom_tool_call", "call_id": "c", "name": "run", "input": "say open sesame"},
        {"type": "custom_tool_call_output", "call_id": "c", "output": "done"}]}),
    "a result": ("responses", {"input": [
        {"role": "user", "content": "Hi"},
        {"type": "shell_call", "call_id": "c", "action": {"commands": ["ls"]}},
        {"type": "shell_call_output", "call_id": "c", "output": [{"stdout": 'open "sesame"'}]}]}),
    "a command": ("responses", {"input": [
        {"role": "user", "content": "Hi"},
        {"type": "shell_call", "call_id": "c", "action": {"commands": ["open sesame"]}},
        {"type": "shell_call_output", "call_id": "c", "output": []}]}),
    "a grammar": ("responses", {"input": "Hi", "tools": [
        {"type": "custom", "name": "run",
         "format": {"type": "grammar", "syntax": "regex", "definition": "open sesame"}}]}),
    "a call in chat": ("chat/completions", {"messages": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "tool_calls": [
            {"id": "c", "type": "custom", "custom": {"name": "run", "input": "open sesame"}}]},
        {"role": "tool", "tool_call_id": "c", "content": "done"}]}),
}  # fmt: skip


@pytest.mark.parametrize("case", ASKED_WITH)
def test_guards_read_what_is_asked_by_such_calls(gateway: Gateway, case: str) -> None:
    """What may not be asked in words could be asked in a command."""
    path, body = ASKED_WITH[case]
    answer = _post(gateway, path, model="caller", **body)
    assert answer.status_code == 400
    assert "sesame" not in answer.text
    assert answer.json()["error"]["code"] == "content_filter", answer.text


def test_this_machine_says_that_it_knows_none(gateway: Gateway) -> None:
    """The field is named, so that whoever wrote it can take it away."""
    answer = _post(gateway, "responses", model="local", input="Hi", tools=[{"type": "local_shell"}])
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools[].type")
