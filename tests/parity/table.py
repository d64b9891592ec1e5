"""The table: what is asked where, with what forbidden in it, and which paths ask no model at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tests.parity.rig import FORBIDDEN, KEY, WORD
from tests.providers.servers.sayings import Call, Saying

Body = dict[str, Any]

CHAT, RESPONSES, COMPLETIONS = "/v1/chat/completions", "/v1/responses", "/v1/completions"
EMBEDDINGS, MESSAGES, COUNT = "/v1/embeddings", "/v1/messages", "/v1/messages/count_tokens"
RERANK, CLASSIFY = "/v1/rerank", "/v1/classify"

# --- what models say ---------------------------------------------------------------------------------------------

ESCAPED = '{"said": "\\u006aabber\\u0020wocky \\u0041KIAIOSFODNN7EXAMPLE 4111 1111 1111 1111"}'

SAYINGS: Mapping[str, Saying] = {
    "text": Saying(text=f"Well, {FORBIDDEN} and more"),
    "thought": Saying(thought=f"Well, {FORBIDDEN} and more", text="Four."),
    "refusal": Saying(refusal=f"No: {FORBIDDEN}, never"),
    "arguments": Saying(calls=(Call("note", f'{{"said": "{FORBIDDEN}"}}'),)),
    "escaped": Saying(calls=(Call("note", ESCAPED),)),
    "keys": Saying(calls=(Call("note", f'{{"{FORBIDDEN}": 1}}'),)),
    "name": Saying(text="Hm. ", calls=(Call(f"jabber_wocky-{KEY}", "{}"),)),
    "id": Saying(text="Hm. ", calls=(Call("note", "{}", id=f"jabber_wocky-{KEY}"),)),
    "fault": Saying(fault=f"Your words {FORBIDDEN} are not taken."),
    "late": Saying(text="Well", fault=f"Your words {FORBIDDEN} are not taken.", late=True),
    "clean": Saying(text="All is well."),
}
"""Each with forbidden words in another place; servers cut them into pieces in the middle of the words."""

FAULTS = {"fault", "late"}
CALLS = {"arguments", "keys", "name", "id"}
SAID_BY_PRESETS = ("text", "arguments", "fault")  # one wire, shown to be guarded by the others

# --- what is asked -----------------------------------------------------------------------------------------------

ASKS: Mapping[str, Callable[[str], Body]] = {
    CHAT: lambda text: {"messages": [{"role": "user", "content": text}]},
    RESPONSES: lambda text: {"input": text},
    COMPLETIONS: lambda text: {"prompt": text},
    MESSAGES: lambda text: {"messages": [{"role": "user", "content": text}], "max_tokens": 50},
    COUNT: lambda text: {"messages": [{"role": "user", "content": text}]},
    EMBEDDINGS: lambda text: {"input": text},
    RERANK: lambda text: {"query": "x", "documents": ["y", text]},
    CLASSIFY: lambda text: {"input": ["x", text]},
}
"""The row of each endpoint that asks a model: a body with that text."""

STREAMING = (CHAT, RESPONSES, COMPLETIONS, MESSAGES)
SILENT = (COUNT, EMBEDDINGS, RERANK, CLASSIFY)
"""Their answers are numbers."""

ASKS_NOTHING: Mapping[str, str] = {
    "GET /": "says where things are",
    "GET /healthz": "says that it runs",
    "GET /readyz": "says which models are ready",
    "GET /metrics": "counts",
    "GET /openapi.json": "describes the API",
    "GET /v1/models": "lists models",
    "GET /v1/models/{model:path}": "describes one",
    "GET /v1/usage": "counts tokens",
    "GET /v1/usage/{id}": "counts tokens",
    "POST /v1/files": "keeps what a caller leaves; what a model is to read of it is guarded when it is asked",
    "GET /v1/files": "lists names that callers gave",
    "GET /v1/files/{id}": "one of them",
    "DELETE /v1/files/{id}": "forgets one",
    "POST /v1/batches": "its lines are cells of their own",
    "GET /v1/batches": "lists them",
    "GET /v1/batches/{id}": "counts its lines",
    "POST /v1/batches/{id}/cancel": "stops it",
    "DELETE /v1/responses/{id}": "forgets one",
    "POST /v1/responses/{id}/cancel": "tells what a response has said by then, as GET does",
}
"""Paths by which no text gets to a model, nor any out of one."""

TELLS_LATER = (
    "GET /v1/responses/{id}",
    "GET /v1/responses/{id}/input_items",
    "GET /v1/files/{id}/content",
)
"""Paths that tell what was said, or sent, before: cells of stored responses and of batches look at them."""

# --- where a caller's words may stand ----------------------------------------------------------------------------

_X = {"role": "user", "content": "x"}
_NAME = "jabber_wocky"
_ADDRESS = f"https://e.com/{_NAME}?key={KEY}"
_EMPTY = "data:application/pdf;base64,JVBERi0="
_SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "description": FORBIDDEN}}}


def _chat(*messages: Any, **more: Any) -> Body:
    return {"messages": list(messages) or [_X], **more}


def _calling(function: Body, id: str = "1", result: Any = "done") -> Body:
    call = {"id": id, "type": "function", "function": {"name": "f", "arguments": "{}", **function}}
    return _chat(
        _X, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": id, "content": result}
    )


def _tool(**more: Any) -> Body:
    return {"tools": [{"type": "function", "function": {"name": "f", **more}}]}


def _custom_called(**more: Any) -> Body:
    call = {"id": "1", "type": "custom", "custom": {"name": "f", "input": "x", **more}}
    return _chat(_X, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "1", "content": "y"})


def _custom(**more: Any) -> Body:
    return _chat(tools=[{"type": "custom", "custom": {"name": "f", **more}}])


def _text(text: str) -> list[Body]:
    return [{"type": "text", "text": text}]


_SPLIT = [{"type": "text", "text": f"so {WORD[:4]}"}, {"type": "text", "text": WORD[4:]}]
_PLAIN = "data:text/plain;base64,"


def _base64(text: str) -> str:
    import base64

    return base64.b64encode(text.encode()).decode()


_SHARED: Mapping[str, Body] = {  # of chats and completions
    "stop": {"stop": ["END", FORBIDDEN]},
    "user": {"user": FORBIDDEN},
    "regex": {"structured_outputs": {"regex": FORBIDDEN}},
    "grammar": {"structured_outputs": {"grammar": f'start: "{FORBIDDEN}"'}},
    "json": {"structured_outputs": {"json": _SCHEMA}},
}

_CHATS: Mapping[str, Body] = {
    "a message": _chat({"role": "user", "content": FORBIDDEN}),
    "a part": _chat({"role": "user", "content": _text(FORBIDDEN)}),
    "two parts": _chat({"role": "user", "content": _SPLIT}),
    "a system message": _chat({"role": "system", "content": FORBIDDEN}, _X),
    "a developer message": _chat({"role": "developer", "content": _text(FORBIDDEN)}, _X),
    "an assistant message": _chat(_X, {"role": "assistant", "content": FORBIDDEN}, _X),
    "a prefill": _chat(_X, {"role": "assistant", "content": FORBIDDEN}, continue_final_message=True),
    "a refusal": _chat(_X, {"role": "assistant", "refusal": FORBIDDEN}, _X),
    "a refusal part": _chat(_X, {"role": "assistant", "content": [{"type": "refusal", "refusal": FORBIDDEN}]}, _X),
    "thoughts": _chat(_X, {"role": "assistant", "content": "y", "reasoning_content": FORBIDDEN}, _X),
    "thoughts by another name": _chat(_X, {"role": "assistant", "content": "y", "reasoning": FORBIDDEN}, _X),
    "thinking blocks": _chat(
        _X,
        {
            "role": "assistant",
            "content": "y",
            "thinking_blocks": [{"type": "thinking", "thinking": FORBIDDEN, "signature": "s"}],
        },
        _X,
    ),
    "a speaker's name": _chat({"role": "user", "name": f"{_NAME}-{KEY}", "content": "x"}),
    "a call's name": _calling({"name": _NAME + "-" + KEY}),
    "a call's arguments": _calling({"arguments": f'{{"a": "{FORBIDDEN}"}}'}),
    "a call's arguments, escaped": _calling({"arguments": ESCAPED}),
    "a call's id": _calling({}, id=f"{_NAME}-{KEY}"),
    "a result": _calling({}, result=FORBIDDEN),
    "a result's part": _calling({}, result=_text(FORBIDDEN)),
    "a picture's address": _chat(
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": _ADDRESS}}],
        }
    ),
    "a file's name": _chat(
        {
            "role": "user",
            "content": [{"type": "file", "file": {"filename": FORBIDDEN, "file_data": _EMPTY}}],
        }
    ),
    "a text file": _chat(
        {
            "role": "user",
            "content": [{"type": "file", "file": {"filename": "a.txt", "file_data": _PLAIN + _base64(FORBIDDEN)}}],
        }
    ),
    "a tool's name": _chat(**_tool(name=f"{_NAME}-{KEY}")),
    "a tool's description": _chat(**_tool(description=FORBIDDEN)),
    "a tool's parameters": _chat(**_tool(parameters=_SCHEMA)),
    "a custom call's name": _custom_called(name=f"{_NAME}-{KEY}"),
    "a custom call's input": _custom_called(input=FORBIDDEN),
    "a custom tool's name": _custom(name=f"{_NAME}-{KEY}"),
    "a custom tool's description": _custom(description=FORBIDDEN),
    "a custom tool's grammar": _custom(
        format={"type": "grammar", "grammar": {"syntax": "lark", "definition": f'start: "{FORBIDDEN}"'}}
    ),
    "a schema": _chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": _SCHEMA}}),
    "a schema's name": _chat(
        response_format={"type": "json_schema", "json_schema": {"name": f"{_NAME}-{KEY}", "schema": {}}}
    ),
    "a schema's description": _chat(
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "description": FORBIDDEN}}
    ),
    "prompt_cache_key": _chat(prompt_cache_key=FORBIDDEN),
    "prediction": _chat(prediction={"type": "content", "content": FORBIDDEN}),
    "moderation": _chat(moderation={"note": FORBIDDEN}),
    "prompt_cache_options": _chat(prompt_cache_options={"note": FORBIDDEN}),
    "safety_identifier": _chat(safety_identifier=FORBIDDEN),
    "metadata": _chat(metadata={"note": FORBIDDEN}),
    "metadata's names": _chat(metadata={FORBIDDEN: "note"}),
    **{name: _chat(**more) for name, more in _SHARED.items()},
}

_COMPLETIONS: Mapping[str, Body] = {
    "a prompt": {"prompt": FORBIDDEN},
    "one of several": {"prompt": ["fine", FORBIDDEN]},
    "a prompt with its echo": {"prompt": FORBIDDEN, "echo": True},
    **{name: {"prompt": "x", **more} for name, more in _SHARED.items()},
}


def _input(*items: Any, **more: Any) -> Body:
    return {"input": list(items) or "x", **more}


def _said(*parts: Any, role: str = "user") -> Body:
    return {"role": role, "content": list(parts)}


def _called(result: Any = "done", id: str = "1", **more: Any) -> Body:
    call = {"type": "function_call", "call_id": id, "name": "f", "arguments": "{}", **more}
    return _input(_X, call, {"type": "function_call_output", "call_id": id, "output": result})


def _did(kind: str, output: Any, **more: Any) -> Body:
    """A call of a kind and what came of it."""
    call = {"type": f"{kind}_call", "call_id": "1", **more}
    told = {"type": f"{kind}_call_output", "call_id": "1", "output": output}
    return _input(_X, call, told | ({"status": "completed"} if kind == "apply_patch" else {}))


_RUN = {"action": {"commands": ["ls"]}}
_RUN_LOCALLY = {"action": {"type": "exec", "command": ["ls"], "env": {}}}
_PATCH = {"operation": {"type": "delete_file", "path": "a"}}
_RAN = {"stdout": "", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}

_KINDS: Mapping[str, Body] = {
    "a custom call's name": _did("custom_tool", "y", name=f"{_NAME}-{KEY}", input="x"),
    "a custom call's input": _did("custom_tool", "y", name="f", input=FORBIDDEN),
    "a custom call's result": _did("custom_tool", FORBIDDEN, name="f", input="x"),
    "a custom call's result's part": _did(
        "custom_tool", [{"type": "input_text", "text": FORBIDDEN}], name="f", input="x"
    ),
    "a local shell's command": _did("local_shell", "y", action={"type": "exec", "command": [FORBIDDEN], "env": {}}),
    "a local shell's variables": _did(
        "local_shell", "y", action={"type": "exec", "command": ["ls"], "env": {FORBIDDEN: "a"}}
    ),
    "a local shell's result": _did("local_shell", FORBIDDEN, **_RUN_LOCALLY),
    "a shell's commands": _did("shell", [_RAN], action={"commands": ["ls", FORBIDDEN]}),
    "a shell's environment": _did(
        "shell", [_RAN], environment={"type": "local", "skills": [{"name": FORBIDDEN}]}, **_RUN
    ),
    "a shell's output": _did("shell", [_RAN | {"stdout": FORBIDDEN}], **_RUN),
    "a shell's errors": _did("shell", [_RAN | {"stderr": FORBIDDEN}], **_RUN),
    "a shell's end": _did("shell", [_RAN | {"outcome": {"type": FORBIDDEN}}], **_RUN),
    "a patch": _did("apply_patch", "y", operation={"type": "create_file", "path": "a", "diff": f"+{FORBIDDEN}"}),
    "a patched file's name": _did("apply_patch", "y", operation={"type": "delete_file", "path": FORBIDDEN}),
    "a patch's result": _did("apply_patch", FORBIDDEN, **_PATCH),
    "a shell's skills": _input(
        tools=[{"type": "shell", "environment": {"type": "local", "skills": [{"name": FORBIDDEN}]}}]
    ),
    "a custom tool's name": _input(tools=[{"type": "custom", "name": f"{_NAME}-{KEY}"}]),
    "a custom tool's description": _input(tools=[{"type": "custom", "name": "f", "description": FORBIDDEN}]),
    "a custom tool's grammar": _input(
        tools=[
            {"type": "custom", "name": "f", "format": {"type": "grammar", "syntax": "regex", "definition": FORBIDDEN}}
        ]
    ),
}
"""Tools that take a text, and those that OpenAI's models know and callers run."""


def _format(**more: Any) -> Body:
    return _input(text={"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}, **more}})


_RESPONSES: Mapping[str, Body] = {
    **_KINDS,
    "a text": {"input": FORBIDDEN},
    "instructions": _input(instructions=FORBIDDEN),
    "a message": _input({"role": "user", "content": FORBIDDEN}),
    "a part": _input(_said({"type": "input_text", "text": FORBIDDEN})),
    "two parts": _input(_said(*({**part, "type": "input_text"} for part in _SPLIT))),
    "a system message": _input({"role": "system", "content": FORBIDDEN}, _X),
    "an answer": _input(_X, _said({"type": "output_text", "text": FORBIDDEN}, role="assistant"), _X),
    "a refusal": _input(_X, _said({"type": "refusal", "refusal": FORBIDDEN}, role="assistant"), _X),
    "a thought": _input(_X, {"type": "reasoning", "summary": [{"type": "summary_text", "text": FORBIDDEN}]}, _X),
    "a thought in full": _input(
        _X, {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": FORBIDDEN}]}, _X
    ),
    "a picture's address": _input(_said({"type": "input_image", "image_url": _ADDRESS, "detail": "auto"})),
    "a file's address": _input(_said({"type": "input_file", "file_url": _ADDRESS})),
    "a file's name": _input(_said({"type": "input_file", "filename": FORBIDDEN, "file_data": _EMPTY})),
    "a text file": _input(_said({"type": "input_file", "filename": "a.txt", "file_data": _PLAIN + _base64(FORBIDDEN)})),
    "a call's name": _called(name=f"{_NAME}-{KEY}"),
    "a call's arguments": _called(arguments=f'{{"a": "{FORBIDDEN}"}}'),
    "a call's arguments, escaped": _called(arguments=ESCAPED),
    "a call's id": _called(id=f"{_NAME}-{KEY}"),
    "a result": _called(FORBIDDEN),
    "a result's part": _called([{"type": "input_text", "text": FORBIDDEN}]),
    "a result's picture": _called([{"type": "input_image", "image_url": _ADDRESS}]),
    "a result's file": _called([{"type": "input_file", "file_url": _ADDRESS}]),
    "a result's text file": _called(
        [{"type": "input_file", "filename": "a.txt", "file_data": _PLAIN + _base64(FORBIDDEN)}]
    ),
    "a result's file's name": _called([{"type": "input_file", "filename": FORBIDDEN, "file_data": _EMPTY}]),
    "a tool's name": _input(tools=[{"type": "function", "name": f"{_NAME}-{KEY}"}]),
    "a tool's description": _input(tools=[{"type": "function", "name": "f", "description": FORBIDDEN}]),
    "a tool's parameters": _input(tools=[{"type": "function", "name": "f", "parameters": _SCHEMA}]),
    "a schema": _format(schema=_SCHEMA),
    "a schema's name": _format(name=f"{_NAME}-{KEY}"),
    "a schema's description": _format(description=FORBIDDEN),
    "metadata": _input(metadata={"note": FORBIDDEN}),
    "metadata's names": _input(metadata={FORBIDDEN: "note"}),
    "user": _input(user=FORBIDDEN),
    "safety_identifier": _input(safety_identifier=FORBIDDEN),
    "prompt_cache_key": _input(prompt_cache_key=FORBIDDEN),
    "moderation": _input(moderation={"note": FORBIDDEN}),
    "access_programs": _input(access_programs={"note": FORBIDDEN}),
    "image": _input(image={"note": FORBIDDEN}),
    "prompt_cache_options": _input(prompt_cache_options={"note": FORBIDDEN}),
    "context_management": _input(context_management=[{"type": FORBIDDEN}]),
    "in the background": _input(instructions=FORBIDDEN, background=True),
}


def _turns(*turns: Any, **more: Any) -> Body:
    return {"messages": list(turns) or [_X], **more}


def _user(*blocks: Any) -> Body:
    return _turns({"role": "user", "content": list(blocks)})


def _assistant(*blocks: Any) -> Body:
    return _turns(_X, {"role": "assistant", "content": [*blocks, {"type": "text", "text": "y"}]}, _X)


def _used(result: Any = "done", id: str = "1", **more: Any) -> Body:
    call = {"type": "tool_use", "id": id, "name": "f", "input": {}, **more}
    told = {"type": "tool_result", "tool_use_id": id, "content": result}
    return _turns(_X, {"role": "assistant", "content": [call]}, {"role": "user", "content": [told]})


_PDF = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}
_PICTURE = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}

_COUNTED: Mapping[str, Body] = {
    "a message": _turns({"role": "user", "content": FORBIDDEN}),
    "a block": _user({"type": "text", "text": FORBIDDEN}),
    "two blocks": _user(*_SPLIT),
    "two turns of one role": _turns(*({"role": "user", "content": [part]} for part in _SPLIT)),
    "instructions": _turns(system=FORBIDDEN),
    "an instruction block": _turns(system=_text(FORBIDDEN)),
    "a system message": _turns(_X, {"role": "system", "content": FORBIDDEN}),
    "an answer": _turns(_X, {"role": "assistant", "content": FORBIDDEN}, _X),
    "a prefill": _turns(_X, {"role": "assistant", "content": FORBIDDEN}),
    "a thought": _assistant({"type": "thinking", "thinking": FORBIDDEN, "signature": "s"}),
    "a picture's address": _user({"type": "image", "source": {"type": "url", "url": _ADDRESS}}),
    "a document": _user(
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": FORBIDDEN}}
    ),
    "a document's title": _user({"type": "document", "source": _PDF, "title": FORBIDDEN}),
    "a document's address": _user({"type": "document", "source": {"type": "url", "url": _ADDRESS}}),
    "a call's name": _used(name=f"{_NAME}-{KEY}"),
    "a call's input": _used(input={"a": [FORBIDDEN]}),
    "a call's input's names": _used(input={FORBIDDEN: 1}),
    "a call's id": _used(id=f"{_NAME}-{KEY}"),
    "a result": _used(FORBIDDEN),
    "a result's block": _used(_text(FORBIDDEN)),
    "a result beside a picture": _used([{"type": "image", "source": _PICTURE}, *_text(FORBIDDEN)]),
    "a tool's name": _turns(tools=[{"name": f"{_NAME}-{KEY}", "input_schema": {"type": "object"}}]),
    "a tool's description": _turns(tools=[{"name": "f", "description": FORBIDDEN, "input_schema": {"type": "object"}}]),
    "a tool's schema": _turns(tools=[{"name": "f", "input_schema": _SCHEMA}]),
    "a tool's examples": _turns(
        tools=[{"name": "f", "input_schema": {"type": "object"}, "input_examples": [{"a": FORBIDDEN}]}]
    ),
    "a schema": _turns(output_config={"format": {"type": "json_schema", "schema": _SCHEMA}}),
    "a result's document": _used(
        [{"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": FORBIDDEN}}]
    ),
    "a result's document's title": _used([{"type": "document", "source": _PDF, "title": FORBIDDEN}]),
    "a result's picture": _used([{"type": "image", "source": {"type": "url", "url": _ADDRESS}}]),
    "a schema, as it used to be said": _turns(output_format={"type": "json_schema", "schema": _SCHEMA}),
    "a tool's callers": _turns(
        tools=[{"name": "f", "input_schema": {"type": "object"}, "allowed_callers": [FORBIDDEN]}]
    ),
    "compaction": _turns(compaction={"note": FORBIDDEN}),
    "user_profile_id": _turns(user_profile_id=FORBIDDEN),
    "workspace_id": _turns(workspace_id=FORBIDDEN),
    "context_management": _turns(context_management={"note": FORBIDDEN}),
}

_MESSAGES: Mapping[str, Body] = {
    **_COUNTED,
    "stop_sequences": _turns(stop_sequences=["END", FORBIDDEN]),
    "metadata": _turns(metadata={"user_id": FORBIDDEN}),
    "container": _turns(container=FORBIDDEN),
    "diagnostics": _turns(diagnostics={"note": FORBIDDEN}),
    "fallbacks": _turns(fallbacks=[{"model": FORBIDDEN}]),
    "thread": _turns(thread={"note": FORBIDDEN}),
    "inference_geo": _turns(inference_geo=FORBIDDEN),
}

PLACES: Mapping[str, Mapping[str, Body]] = {
    CHAT: _CHATS,
    RESPONSES: _RESPONSES,
    COMPLETIONS: _COMPLETIONS,
    MESSAGES: {name: {"max_tokens": 50, **body} for name, body in _MESSAGES.items()},
    COUNT: _COUNTED,
    EMBEDDINGS: {
        "a text": {"input": FORBIDDEN},
        "one of several": {"input": ["fine", FORBIDDEN]},
    },
    RERANK: {
        "a query": {"query": FORBIDDEN, "documents": ["x"]},
        "a document": {"query": "x", "documents": ["fine", FORBIDDEN]},
        "a document's text": {"query": "x", "documents": ["fine", {"text": FORBIDDEN}]},
    },
    CLASSIFY: {
        "a text": {"input": FORBIDDEN},
        "one of several": {"input": ["fine", FORBIDDEN]},
    },
}
"""Bodies with the forbidden words in each place where a caller's words may stand."""

_SAMPLING = {
    "temperature", "top_p", "n", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "top_k", "min_p",
    "repetition_penalty", "ignore_eos", "max_tokens", "logprobs", "service_tier",
}  # fmt: skip
_CACHING = {"cache_control.type", "cache_control.ttl"}
_BREAKPOINT = {"prompt_cache_breakpoint.mode", "prompt_cache_breakpoint.ttl"}
_COUNTED_NO_WORDS = {
    "messages[].role", "messages[].content[].source.media_type", "messages[].content[].content[].source.media_type",
    "messages[].content[].is_error", "tools[].strict", "tools[].defer_loading", "tools[].eager_input_streaming",
    "output_config.effort", "output_config.format.type", "output_format.type", "thinking.type",
    "thinking.budget_tokens", "thinking.display", "tool_choice.type", "tool_choice.disable_parallel_tool_use", "speed",
    "tools[].type", "tools[].display_height_px", "tools[].display_number", "tools[].display_width_px",
    "tools[].enable_zoom", "tools[].max_characters",
    *(f"{place}{name}" for place in ("", "system[].", "tools[].", "messages[].content[].",
                                     "messages[].content[].content[].") for name in _CACHING),
}  # fmt: skip
_ONE_OF_THE_TOOLS = {
    "tool_choice.name", "tool_choice.function.name", "tool_choice.tools[].name",
    "tool_choice.allowed_tools.tools[].function.name", "tool_choice.custom.name",
    "tool_choice.allowed_tools.tools[].custom.name",
}  # fmt: skip
_SEALED = {
    "messages[].thinking_blocks[].data", "messages[].thinking_blocks[].signature",
    "messages[].tool_calls[].extra_content.google.thought_signature", "input[].encrypted_content",
    "messages[].content[].data", "messages[].content[].signature",
}  # fmt: skip
"""What only the provider that sealed it can read. A model is shown none of it, unless its provider knows the seal."""

_NO_WORDS: Mapping[str, set[str]] = {
    CHAT: {
        *_SAMPLING, "tool_choice", "tool_choice.allowed_tools.mode", "messages[].role", "continue_final_message",
        "max_completion_tokens",
        "messages[].content[].image_url.detail", "messages[].content[].input_audio.data",
        "messages[].content[].input_audio.format", *(f"messages[].content[].{name}" for name in _BREAKPOINT),
        "messages[].thinking_blocks[].type", "messages[].tool_calls[].type", "parallel_tool_calls",
        "prompt_cache_retention", "reasoning_effort", "response_format.json_schema.strict", "response_format.type",
        "tools[].function.strict", "top_logprobs", "verbosity", "tools[].type", "tools[].custom.format.type",
        "tools[].custom.format.grammar.syntax",
    },
    RESPONSES: {
        "include", "input[].role", "input[].content[].detail", "input[].output[].detail", "max_output_tokens",
        *(f"input[].{part}[].{name}" for part in ("content", "output") for name in _BREAKPOINT),
        "parallel_tool_calls", "prompt_cache_retention", "reasoning.effort", "reasoning.generate_summary",
        "reasoning.summary", "service_tier", "temperature", "text.format.strict", "text.verbosity", "tool_choice",
        "tool_choice.mode", "tools[].strict", "top_logprobs", "top_p", "tools[].type", "tools[].format.type",
        "tools[].format.syntax", "tools[].environment.type", "tool_choice.type", "input[].max_output_length",
        "reasoning.context",
    },
    COMPLETIONS: {*_SAMPLING - {"service_tier"}, "echo"},
    EMBEDDINGS: set(),
    RERANK: set(),
    CLASSIFY: set(),
    MESSAGES: {*_COUNTED_NO_WORDS, "max_tokens", "temperature", "top_p", "top_k", "service_tier"},
    COUNT: _COUNTED_NO_WORDS,
}  # fmt: skip

NO_WORDS: Mapping[str, frozenset[str]] = {path: frozenset(names) for path, names in _NO_WORDS.items()}
"""Fields that go to the engine and hold no words: numbers, and choices of a list."""

NOT_READ = frozenset(_ONE_OF_THE_TOOLS | _SEALED)
"""Fields whose words stand elsewhere too, or are sealed."""
