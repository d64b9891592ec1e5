"""Neutral requests in the words of each dialect, and the one way of several to say the same in it.

`written_body` is the tests' own writer: the way back of each dialect's parser. `normal_body` is a body without what
the gateway does itself, without defaults, and with the shorter ways to write something written out.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

from interlace.engines.types import (
    AudioPart,
    FilePart,
    GenerateRequest,
    ImagePart,
    Message,
    OutputRule,
    Part,
    Reasoning,
    RefusalPart,
    Sampling,
    TextPart,
    ThinkingPart,
    Tool,
    ToolCall,
)
from interlace.gateway.dialects import DIALECTS
from interlace.gateway.translation import Here, Ignored
from tests.support.neutral_form import said_by

Json = dict[str, Any]
_REDACTED, _CALL = "interlace-redacted:", "interlace-call:"


def written_body(dialect: str, request: GenerateRequest) -> Json:
    """The request in the dialect's words."""
    return _WRITERS[dialect](request)


def normal_body(dialect: str, body: Json) -> Json:
    """The body as its one way to say what it says."""
    left = _left(body, DIALECTS[dialect].table, "")
    left.pop("model", None)
    return _said(_NORMAL[dialect](left))


def _left(value: Any, table: Mapping[str, Any], path: str) -> Any:
    """What is carried to engines: no nulls, nothing that the gateway does or nobody reads. Ids and types that tell
    things apart stay."""
    if isinstance(value, list):
        return [_left(one, table, f"{path}[]") for one in value]
    if not isinstance(value, dict) or path in table:
        return value
    made = {}
    for name, one in value.items():
        where = f"{path}.{name}" if path else name
        apart = name in {"type", "id"} or where == "best_of"
        if one is not None and (apart or not isinstance(table.get(where), Here | Ignored)):
            made[name] = _left(one, table, where)
    return made


def _said(value: Json) -> Json:
    """Without fields that say nothing."""
    return {name: one for name, one in value.items() if one not in (None, [], {}) or one is False}


def _drop(body: Json, **plain: Any) -> Json:
    """Without fields at these values, which say nothing."""
    return {name: one for name, one in body.items() if not (name in plain and one in plain[name])}


def _sampled(body: Json) -> Json:
    """Sampling as chat and text completions write it."""
    if isinstance(body.get("stop"), str):
        body["stop"] = [body["stop"]]
    if "top_p" in body:
        body["top_p"] = max(body["top_p"], 1e-9)
    if "top_k" in body:
        body["top_k"] = max(body["top_k"], 0)
    return _drop(body, n=(1,), presence_penalty=(0,), frequency_penalty=(0,), ignore_eos=(False,))


def _write_sampling(request: GenerateRequest) -> Json:
    sampling, plain = request.sampling, Sampling()
    body: Json = {"max_tokens": sampling.max_tokens, "n": request.n, "seed": sampling.seed, "stop": list(sampling.stop)}
    for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty"):
        if name not in request.unset:
            body[name] = getattr(sampling, name)
    for name in ("presence_penalty", "frequency_penalty", "ignore_eos"):
        if getattr(sampling, name) != getattr(plain, name):
            body[name] = getattr(sampling, name)
    body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    return body


def _write_structured(rule: OutputRule) -> Json:
    named = rule.kind != "json_schema"
    return {"structured_outputs": {rule.kind: rule.rule} if named else {"json": json.loads(rule.rule)}}


# --- chat completions --------------------------------------------------------------------------------------------


def _mark_of_openai(cache: str) -> Json:
    made = {"mode": "explicit"} | ({} if cache == "default" else {"ttl": cache})
    return {"prompt_cache_breakpoint": made} if cache else {}


def _data_url(part: ImagePart | FilePart) -> str:
    data = part.data or base64.b64encode(getattr(part, "text", "").encode()).decode()
    return part.url or f"data:{part.media_type};base64,{data}"


def _chat_part(part: Part) -> Json:
    match part:
        case TextPart():
            return {"type": "text", "text": part.text, **_mark_of_openai(part.cache)}
        case RefusalPart():
            return {"type": "refusal", "refusal": part.text}
        case ImagePart():
            image = {"url": _data_url(part)} | ({"detail": part.detail} if part.detail else {})
            return {"type": "image_url", "image_url": image, **_mark_of_openai(part.cache)}
        case AudioPart():
            sound = {"data": part.data, "format": part.format}
            return {"type": "input_audio", "input_audio": sound, **_mark_of_openai(part.cache)}
        case FilePart():
            file = {"file_data": _data_url(part)} | ({"filename": part.name} if part.name else {})
            return {"type": "file", "file": file, **_mark_of_openai(part.cache)}
    raise AssertionError(part)


def _chat_thought(part: ThinkingPart) -> Json:
    if part.redacted:
        return {"type": "redacted_thinking", "data": part.redacted}
    return _said({"type": "thinking", "thinking": part.text, "signature": part.signature or None})


def _chat_call(call: ToolCall) -> Json:
    if call.kind:
        return {"id": call.id, "type": "custom", "custom": {"name": call.name, "input": call.arguments}}
    made: Json = {"id": call.id, "function": {"name": call.name, "arguments": call.arguments}, "type": "function"}
    return made | ({"extra_content": {"google": {"thought_signature": call.signature}}} if call.signature else {})


def _chat_turn(turn: Message) -> Json:
    return _said(
        {
            "role": turn.role,
            "content": [_chat_part(part) for part in turn.parts if not isinstance(part, ThinkingPart)],
            "thinking_blocks": [_chat_thought(part) for part in turn.parts if isinstance(part, ThinkingPart)],
            "name": turn.name,
            "tool_calls": [_chat_call(call) for call in turn.tool_calls],
            "tool_call_id": turn.tool_call_id,
        }
    )


def _chat_format(rule: OutputRule | None) -> Json:
    if rule is None:
        return {}
    if rule.kind == "json_object":
        return {"response_format": {"type": "json_object"}}
    if rule.kind != "json_schema" or (rule.name == "answer" and rule.strict):
        return _write_structured(rule)
    return {"response_format": {"type": "json_schema", "json_schema": _schema_format(rule)}}


def _schema_format(rule: OutputRule) -> Json:
    made = {"name": rule.name, "schema": json.loads(rule.rule), "strict": rule.strict}
    return made | ({"description": rule.description} if rule.description else {})


def _chat_custom(tool: Tool) -> Json:
    made = _said({"name": tool.name, "description": tool.description or None})
    if (wanted := tool.native.get("format")) is None:
        return made
    rule = {name: value for name, value in wanted.items() if name != "type"}
    return made | {"format": {"type": wanted["type"], **({"grammar": rule} if rule else {})}}


def _write_chat(request: GenerateRequest) -> Json:
    options, logprobs = request.options, request.sampling.logprobs
    kind, _, name = request.tool_choice.partition(":")
    tools = [
        {
            "type": "function",
            "function": _said(
                {"name": tool.name, "description": tool.description or None, "parameters": tool.parameters}
            )
            | ({"strict": True} if tool.strict else {}),
        }
        if not tool.kind
        else {"type": "custom", "custom": _chat_custom(tool)}
        for tool in request.tools
    ]
    chosen = "custom" if any(tool.kind for tool in request.tools if tool.name == name) else "function"
    return {
        **_write_sampling(request),
        **_chat_format(request.output),
        "messages": [_chat_turn(turn) for turn in request.messages or ()],
        "logprobs": None if logprobs is None else True,
        "top_logprobs": logprobs or None,
        "tools": tools,
        "tool_choice": {"type": chosen, chosen: {"name": name}} if name else kind,
        "parallel_tool_calls": request.parallel_tool_calls,
        "continue_final_message": request.prefill,
        "reasoning_effort": (request.reasoning or Reasoning()).effort or None,
        "verbosity": options.verbosity or None,
        "service_tier": options.service_tier or None,
        "user": options.user or None,
        "safety_identifier": options.safety_identifier or None,
        "prompt_cache_key": options.cache_key or None,
        "prompt_cache_retention": options.cache_retention or None,
        "metadata": dict(options.metadata),
        **request.native,
    }


def _normal_chat(body: Json) -> Json:
    body = _sampled(body)
    if "max_completion_tokens" in body:
        body["max_tokens"] = body.pop("max_completion_tokens")
    if not body.get("logprobs"):
        body.pop("logprobs", None)
    body = _drop(body, top_logprobs=(0,), continue_final_message=(False,), parallel_tool_calls=(True,))
    if "prompt_cache_retention" in body:
        body["prompt_cache_retention"] = body["prompt_cache_retention"].replace("-", "_")
    wanted = body.get("response_format", {})
    if wanted.get("type") == "text":
        del body["response_format"]
    if wanted.get("type") == "json_schema":
        wanted["json_schema"] = {"strict": False} | wanted["json_schema"]
    body["messages"] = [_normal_chat_turn(turn) for turn in body["messages"]]
    if isinstance(choice := body.get("tool_choice"), dict) and "allowed_tools" in choice:
        names = [one[one["type"]]["name"] for one in choice["allowed_tools"]["tools"]]
        body["tools"] = [tool for tool in body["tools"] if tool[tool["type"]]["name"] in names]
        body["tool_choice"] = choice["allowed_tools"]["mode"]
    for tool in body.get("tools", ()):
        if tool["type"] == "function":
            tool["function"] = _said(_drop(tool["function"], strict=(False,)))
    return _plain_choice(body)


def _plain_choice(body: Json) -> Json:
    """Without a choice that holds anyway."""
    plain = ("auto",) if body.get("tools") else ("auto", "none")
    return _drop(body, tool_choice=plain)


def _normal_chat_turn(turn: Json) -> Json:
    content = turn.pop("content", [])
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    parts = [part for part in parts if part.get("text") != ""]
    if turn.get("refusal") is not None:
        parts = [*parts, {"type": "refusal", "refusal": turn.pop("refusal")}]
    if turn["role"] == "tool":
        turn.pop("name", None)
    thought = turn.pop("reasoning_content", None) or turn.pop("reasoning", None)
    if thought and not turn.get("thinking_blocks"):
        turn["thinking_blocks"] = [{"type": "thinking", "thinking": thought}]
    for call in turn.get("tool_calls", ()):
        call.setdefault("type", "function")
    return _said(turn | {"content": parts})


# --- completions -------------------------------------------------------------------------------------------------


def _write_completion(request: GenerateRequest) -> Json:
    made = _write_sampling(request) | {
        "prompt": request.prompt if request.prompt is not None else list(request.prompt_ids or ()),
        "logprobs": request.sampling.logprobs,
        "echo": request.sampling.prompt_logprobs or None,
        "user": request.options.user or None,
    }
    return made | ({} if request.output is None else _write_structured(request.output))


def _normal_completion(body: Json) -> Json:
    body = {"max_tokens": 16} | _sampled(body)
    body.pop("best_of", None)
    if not body.get("echo") or "logprobs" not in body:
        body.pop("echo", None)
    return body


# --- responses ---------------------------------------------------------------------------------------------------


def _response_part(part: Part, role: str) -> Json:
    match part:
        case TextPart() if role == "assistant":
            return {"type": "output_text", "text": part.text}
        case TextPart():
            return {"type": "input_text", "text": part.text, **_mark_of_openai(part.cache)}
        case RefusalPart():
            return {"type": "refusal", "refusal": part.text}
        case ImagePart():
            detail = {"detail": part.detail} if part.detail else {}
            return {"type": "input_image", "image_url": _data_url(part), **detail, **_mark_of_openai(part.cache)}
        case FilePart():
            where = {"file_url": part.url} if part.url else {"file_data": _data_url(part)}
            name = {"filename": part.name} if part.name else {}
            return {"type": "input_file", **where, **name, **_mark_of_openai(part.cache)}
        case AudioPart():
            return {"type": "input_audio", "data": part.data}  # which callers cannot say, but providers could be told
    raise AssertionError(part)


def _reasoning_item(part: ThinkingPart) -> Json:
    sealed = f"{_REDACTED}{part.redacted}" if part.redacted else part.signature
    return _said(
        {
            "type": "reasoning",
            "id": part.id or None,
            "summary": [{"type": "summary_text", "text": text} for text in part.summary],
            "content": [{"type": "reasoning_text", "text": part.text}] if part.text else None,
            "encrypted_content": sealed or None,
        }
    )


def _response_items(turn: Message) -> list[Json]:
    if turn.role == "tool" and turn.kind not in ("", "custom"):
        return [{**json.loads(turn.text), "type": f"{turn.kind}_output", "call_id": turn.tool_call_id}]
    if turn.role == "tool":
        kind = "custom_tool" if turn.kind else "function"
        output = [_response_part(part, "tool") for part in turn.parts]
        return [{"type": f"{kind}_call_output", "call_id": turn.tool_call_id, "output": output}]
    if turn.role != "assistant":
        return [{"type": "message", "role": turn.role, "content": [_response_part(p, turn.role) for p in turn.parts]}]
    items: list[Json] = []
    for one in turn.sequence:
        match one:
            case ThinkingPart():
                items.append(_reasoning_item(one))
            case ToolCall():
                items += _response_call(one)
            case _:
                if not items or items[-1]["type"] != "message":
                    items.append({"type": "message", "role": "assistant", "content": []})
                items[-1]["content"].append(_response_part(one, "assistant"))
    return items


def _response_call(call: ToolCall) -> list[Json]:
    if call.kind == "custom":
        return [{"type": "custom_tool_call", "call_id": call.id, "name": call.name, "input": call.arguments}]
    if call.kind:
        return [{**json.loads(call.arguments), "type": call.kind, "call_id": call.id}]
    made = {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": call.arguments}
    seal = {"type": "reasoning", "encrypted_content": f"{_CALL}{call.id}\n{call.signature}"}
    return [made, seal] if call.signature else [made]


def _write_responses(request: GenerateRequest) -> Json:
    options, rule = request.options, request.output
    kind, _, name = request.tool_choice.partition(":")
    tools = [
        _said({"type": "function", "name": tool.name, "description": tool.description or None})
        | _said({"parameters": tool.parameters})
        | {"strict": tool.strict}
        if not tool.kind
        else _said({"name": tool.name, "description": tool.description or None} if tool.kind == "custom" else {})
        | {"type": tool.kind, **tool.native}
        for tool in request.tools
    ]
    kinds = {tool.name: tool.kind for tool in request.tools}
    named = {"name": name} if kinds.get(name) in ("", "custom", None) else {}
    made: Json = {
        "input": [item for turn in request.messages or () for item in _response_items(turn)],
        "max_output_tokens": request.sampling.max_tokens,
        "logprobs": request.sampling.logprobs,
        "tools": tools,
        "tool_choice": {"type": kinds.get(name) or "function", **named} if name else kind,
        "parallel_tool_calls": request.parallel_tool_calls,
        "service_tier": options.service_tier or None,
        "user": options.user or None,
        "safety_identifier": options.safety_identifier or None,
        "prompt_cache_key": options.cache_key or None,
        "prompt_cache_retention": options.cache_retention or None,
        "metadata": dict(options.metadata),
        **{name: value for name, value in request.native.items() if name != "reasoning.context"},
    }
    for field in ("temperature", "top_p"):
        if field not in request.unset:
            made[field] = getattr(request.sampling, field)
    text: Json = {"verbosity": options.verbosity or None}
    if rule is not None:
        schema = {"type": "json_schema", **_schema_format(rule)} if rule.kind == "json_schema" else {"type": rule.kind}
        text["format"] = schema
    made["text"] = _said(text)
    thinks = request.reasoning or Reasoning()
    reasoning = {"effort": thinks.effort or None, "summary": thinks.summary or None}
    made["reasoning"] = _said(reasoning | {"context": request.native.get("reasoning.context")})
    return made


def _normal_responses(body: Json) -> Json:
    given = body["input"]
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    first = body.pop("instructions", None)
    items = [*([{"role": "system", "content": first}] if first else []), *items]
    body["input"] = [_normal_item(item) for item in items]
    if "top_p" in body:
        body["top_p"] = max(body["top_p"], 1e-9)
    wished = "message.output_text.logprobs" in body.pop("include", ())
    told = body.pop("top_logprobs", 0)
    if wished or told:
        body["logprobs"] = told
    text = body.get("text", {})
    if text.get("format", {}).get("type") == "text":
        del text["format"]
    if text.get("format", {}).get("type") == "json_schema":
        text["format"] = {"strict": False} | text["format"]
    reasoning = body.get("reasoning", {})
    if (older := reasoning.pop("generate_summary", None)) is not None:
        reasoning.setdefault("summary", older)
    if "prompt_cache_retention" in body:
        body["prompt_cache_retention"] = body["prompt_cache_retention"].replace("-", "_")
    if reasoning.get("context") == "auto":
        del reasoning["context"]
    for tool in body.get("tools", ()):
        if tool["type"] == "function":
            tool.setdefault("strict", _strictly(tool.get("parameters", {})))
        for name in ("allowed_callers", "async", "defer_loading"):  # which here ask for nothing
            tool.pop(name, None)
    _choose(body)
    body["tools"] = [_said(tool) for tool in body.get("tools", ())]
    return _plain_choice(_drop(body, parallel_tool_calls=(True,)))


def _choose(body: Json) -> None:
    """Of all tools only the allowed ones."""
    choice = body.get("tool_choice")
    if isinstance(choice, dict) and choice["type"] == "allowed_tools":
        allowed = [one.get("name", one["type"]) for one in choice["tools"]]
        body["tools"] = [tool for tool in body["tools"] if tool.get("name", tool["type"]) in allowed]
        body["tool_choice"] = choice["mode"]


def _strictly(schema: Any) -> bool:
    """Whether a drawn schema is one that OpenAI can hold to strictly: every property required, and no others."""
    if not schema:
        return True
    return schema.get("additionalProperties") is False and schema.get("required") == list(schema["properties"])


def _normal_item(item: Json) -> Json:
    item = {"type": "message"} | item
    item.pop("caller", None)
    if item["type"] == "function_call_output":
        item.pop("name", None)
    if item["type"] == "reasoning" and item.get("content"):  # its pieces become one
        thought = "\n\n".join(part["text"] for part in item["content"])
        item["content"] = [{"type": "reasoning_text", "text": thought}]
    if item["type"] == "local_shell_call_output":  # its call may be named by `id`
        item.setdefault("call_id", item.get("id"))
    if item["type"] != "reasoning":
        item.pop("id", None)
    elif item.get("encrypted_content", "").startswith(_CALL):
        return {"type": "reasoning", "encrypted_content": item["encrypted_content"]}
    kind = "output_text" if item.get("role") == "assistant" else "input_text"
    for name in ("content", "output"):
        if isinstance(item.get(name), str) and not item["type"].startswith(("local_shell", "apply_patch")):
            item[name] = [{"type": kind, "text": item[name]}] if item[name] else []
        for part in item.get(name, ()):
            if "type" not in part:
                continue
            if part.get("detail") == "auto" or part["type"] == "input_file":
                part.pop("detail", None)
    return _said(item)


# --- messages ----------------------------------------------------------------------------------------------------


def _mark_of_anthropic(cache: str) -> Json:
    made = {"type": "ephemeral"} | ({} if cache == "default" else {"ttl": cache})
    return {"cache_control": made} if cache else {}


def _block(part: Part) -> Json:
    match part:
        case TextPart():
            return {"type": "text", "text": part.text, **_mark_of_anthropic(part.cache)}
        case RefusalPart():
            return {"type": "text", "text": part.text}
        case ThinkingPart() if part.redacted:
            return {"type": "redacted_thinking", "data": part.redacted}
        case ThinkingPart():
            return {"type": "thinking", "thinking": part.text, "signature": part.signature}
        case ImagePart():
            return {"type": "image", "source": _source(part), **_mark_of_anthropic(part.cache)}
        case FilePart():
            title = {"title": part.name} if part.name else {}
            return {"type": "document", "source": _source(part), **title, **_mark_of_anthropic(part.cache)}
        case AudioPart():
            return {"type": "audio", "data": part.data}
    raise AssertionError(part)


def _source(part: ImagePart | FilePart) -> Json:
    if part.url:
        return {"type": "url", "url": part.url}
    if isinstance(part, FilePart) and part.text:
        return {"type": "text", "media_type": "text/plain", "data": part.text}
    return {"type": "base64", "media_type": part.media_type, "data": part.data}


def _tool_use(call: ToolCall) -> Json:
    made = {"type": "tool_use", "id": call.id, "name": call.name, "input": said_by(call.arguments)}
    return made | _mark_of_anthropic(call.cache)


def _anthropic_turn(turn: Message) -> Json:
    if turn.role == "tool":
        result = {"type": "tool_result", "tool_use_id": turn.tool_call_id, "content": [_block(p) for p in turn.parts]}
        failed = {"is_error": True} if turn.is_error else {}
        return {"role": "user", "content": [_said(result) | failed | _mark_of_anthropic(turn.cache)]}
    content = [_tool_use(one) if isinstance(one, ToolCall) else _block(one) for one in turn.sequence]
    return {"role": turn.role, "content": content}


def _write_messages(request: GenerateRequest) -> Json:
    options, reasoning = request.options, request.reasoning or Reasoning()
    messages = [_anthropic_turn(turn) for turn in request.messages or ()]
    kind, _, name = request.tool_choice.partition(":")
    choice: Json = {"type": {"required": "any", "function": "tool"}.get(kind, kind)}
    choice |= {"name": name} if name else {}
    choice |= {} if request.parallel_tool_calls else {"disable_parallel_tool_use": True}
    thinking: Json = {}
    if reasoning.budget_tokens:
        thinking = {"type": "enabled", "budget_tokens": reasoning.budget_tokens}
    elif reasoning.adaptive:
        thinking = {"type": "adaptive"}
    elif reasoning.effort == "none":
        thinking = {"type": "disabled"}
    thinking |= {"display": reasoning.summary} if reasoning.summary else {}
    config: Json = {} if reasoning.effort in ("", "none") else {"effort": reasoning.effort}
    if request.output is not None:
        config["format"] = {"type": "json_schema", "schema": json.loads(request.output.rule or "{}")}
    made: Json = {
        "messages": messages,
        "tools": [
            {"name": tool.name, **({"type": tool.kind} if tool.kind else {"input_schema": tool.parameters})}
            | {**tool.native, **_mark_of_anthropic(tool.cache)}
            | ({"description": tool.description} if tool.description else {})
            | ({"strict": True} if tool.strict else {})
            for tool in request.tools
        ],
        "tool_choice": choice,
        "thinking": thinking,
        "output_config": config,
        "max_tokens": request.sampling.max_tokens,
        "stop_sequences": list(request.sampling.stop),
        "metadata": {"user_id": options.user} if options.user else {},
        "service_tier": options.service_tier or None,
    }
    for field in ("temperature", "top_p", "top_k"):
        if field not in request.unset:
            made[field] = getattr(request.sampling, field)
    return made | dict(request.native)


def _normal_messages(body: Json) -> Json:
    turns = [{"role": "system", "content": body.pop("system")}] if body.get("system") else []
    merged: list[Json] = []
    for turn in [*turns, *body["messages"]]:
        content = [block for block in map(_normal_block, _listed(turn["content"])) if block.get("text") != ""]
        if merged and merged[-1]["role"] == turn["role"] != "system":
            merged[-1]["content"] += content
        elif content:
            merged.append({"role": turn["role"], "content": content})
    last = merged[-1]["content"][-1]
    if (mark := body.pop("cache_control", None)) is not None and "thinking" not in last["type"]:
        last.setdefault("cache_control", mark)
    body["messages"] = merged
    if "top_p" in body:
        body["top_p"] = max(body["top_p"], 1e-9)
    if (older := body.pop("output_format", None)) is not None:
        body.setdefault("output_config", {})["format"] = older
    body["tools"] = [_normal_tool(tool) for tool in body.get("tools", ())]
    choice = _drop(body.pop("tool_choice", {"type": "auto"}), disable_parallel_tool_use=(False,))
    if choice != {"type": "auto" if body["tools"] else "none"} and (body["tools"] or choice != {"type": "auto"}):
        body["tool_choice"] = choice
    return _drop(body, speed=("standard",))


def _listed(content: Any) -> list[Json]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _normal_block(block: Json) -> Json:
    block = _drop(block, is_error=(False,))
    for name in ("citations", "caller"):
        block.pop(name, None)
    if block["type"] == "tool_use":
        block["input"] = block["input"] if isinstance(block["input"], str) else said_by(json.dumps(block["input"]))
        return block
    if block["type"] == "tool_result":
        said = [one for one in map(_normal_block, _listed(block.get("content", []))) if one.get("text") != ""]
        return _said(block | {"content": said})
    return block


def _normal_tool(tool: Json) -> Json:
    tool = _drop(tool, strict=(False,), allowed_callers=(["direct"],), defer_loading=(False,))
    return _drop(tool, eager_input_streaming=(False,), type=("custom",))


Writer = Callable[[GenerateRequest], Json]
_WRITERS: dict[str, Writer] = {
    "openai.chat": _write_chat,
    "openai.completions": _write_completion,
    "openai.responses": _write_responses,
    "anthropic.messages": _write_messages,
}
_NORMAL: dict[str, Callable[[Json], Json]] = {
    "openai.chat": _normal_chat,
    "openai.completions": _normal_completion,
    "openai.responses": _normal_responses,
    "anthropic.messages": _normal_messages,
}
