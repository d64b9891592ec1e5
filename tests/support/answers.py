"""Random answers: what a model could say, as neutral events and in each provider's published format.

Each format is whole or streamed. `Answered` is what was said, in the order thoughts, text or refusal, calls; writers
here know nothing of the readers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from interlace.engines.types import Delta, Event, FinishReason, Started, Thought, ToolCallDelta, Usage
from tests.providers.servers.bedrock import frame_of
from tests.support.drawing import Draw

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Thinking:
    """A thought with its seal, or one that only its provider can read."""

    text: str = ""
    seal: str = ""
    redacted: str = ""


@dataclass(frozen=True, slots=True)
class Called:
    """A call; `arguments` as the model wrote them."""

    id: str
    name: str
    arguments: str
    seal: str = ""


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer."""

    thoughts: tuple[Thinking, ...] = ()
    text: str = ""
    refusal: str = ""
    calls: tuple[Called, ...] = ()
    finish: FinishReason = "stop"
    usage: Usage = field(default_factory=lambda: Usage(10, 10))


def drawn_answer(draw: Draw, *, seals: bool, redacted: bool, refusals: bool, sealed_calls: bool) -> Answered:
    """A random answer of a provider that knows these."""
    thoughts: list[Thinking] = []
    for _ in range(draw.random.randint(0, 2 if seals else 1)):
        if redacted and draw.chance(0.3):
            thoughts.append(Thinking(redacted=draw.base64()))
        else:
            thoughts.append(Thinking(draw.text(6), draw.base64() if seals else ""))
    calls = tuple(
        Called(draw.fresh("call"), draw.name(), draw.arguments(), draw.base64() if sealed_calls else "")
        for _ in range(draw.random.randint(0, 2))
    )
    text = draw.text(8) if not calls or draw.chance(0.5) else ""
    refusal = ""
    if refusals and not calls and draw.chance(0.2):
        text, refusal = "", draw.text()
    finish: FinishReason = "tool_calls" if calls else draw.one(("stop", "length", "content_filter"))
    if refusal:
        finish = "stop"
    return Answered(tuple(thoughts), text, refusal, calls, finish, _usage(draw))


def _usage(draw: Draw) -> Usage:
    cached, written = draw.random.randint(0, 50), draw.random.randint(0, 50)
    reasoning = draw.random.randint(0, 50)
    return Usage(
        cached + written + draw.random.randint(1, 99),
        reasoning + draw.random.randint(99, 999),
        cached,
        written,
        reasoning,
    )


def pieces(draw: Draw, text: str) -> Iterator[str]:
    """The text in random pieces."""
    while text:
        size = draw.random.randint(1, 5)
        yield text[:size]
        text = text[size:]


def cut(draw: Draw, data: bytes) -> Iterator[bytes]:
    """Bytes as a network could bring them."""
    while data:
        size = draw.random.randint(1, 200)
        yield data[:size]
        data = data[size:]


# --- neutral -----------------------------------------------------------------------------------------------------


def neutral_events(draw: Draw, said: Answered) -> list[Event]:
    """What an engine could tell."""
    events: list[Event] = [Started(said.usage.prompt_tokens)]
    for thought in said.thoughts:
        if thought.redacted:
            events.append(Delta(tokens=1, thought=Thought(redacted=thought.redacted)))
            continue
        events += [Delta(tokens=1, thought=Thought(piece)) for piece in pieces(draw, thought.text)]
        if thought.seal:
            events.append(Delta(thought=Thought(signature=thought.seal)))
    events += [Delta(text=piece, tokens=1) for piece in pieces(draw, said.text)]
    events += [Delta(text=piece, tokens=1, refused=True) for piece in pieces(draw, said.refusal)]
    for index, call in enumerate(said.calls):
        events.append(Delta(tokens=1, tool_calls=(ToolCallDelta(index, call.id, call.name, signature=call.seal),)))
        for piece in pieces(draw, call.arguments):
            events.append(Delta(tokens=1, tool_calls=(ToolCallDelta(index, arguments=piece),)))
    return [*events, Delta(finish_reason=said.finish), said.usage]


# --- OpenAI's chat -----------------------------------------------------------------------------------------------


def _chat_usage(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": usage.cache_write_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _chat_call(index: int, call: Called, arguments: str) -> Json:
    made: Json = {"index": index, "id": call.id, "type": "function"}
    made["function"] = {"name": call.name, "arguments": arguments}
    return made | ({"extra_content": {"google": {"thought_signature": call.seal}}} if call.seal else {})


def whole_chat(said: Answered) -> bytes:
    """As chat completions tell it."""
    message: Json = {"role": "assistant", "content": said.text or None, "refusal": said.refusal or None}
    if said.thoughts:
        message["reasoning_content"] = "".join(thought.text for thought in said.thoughts)
    if said.calls:
        message["tool_calls"] = [_chat_call(i, call, call.arguments) for i, call in enumerate(said.calls)]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": said.finish}
    shell = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return json.dumps(shell | {"usage": _chat_usage(said.usage)}).encode()


def streamed_chat(draw: Draw, said: Answered) -> bytes:
    """As chunks."""
    deltas: list[tuple[Json, str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"reasoning_content": p}, None) for thought in said.thoughts for p in pieces(draw, thought.text)]
    deltas += [({"content": piece}, None) for piece in pieces(draw, said.text)]
    deltas += [({"refusal": piece}, None) for piece in pieces(draw, said.refusal)]
    for index, call in enumerate(said.calls):
        deltas.append(({"tool_calls": [_chat_call(index, call, "")]}, None))
        for piece in pieces(draw, call.arguments):
            deltas.append(({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}, None))
    deltas.append(({}, said.finish))
    shell = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    chunks = [
        shell | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], "usage": None}
        for delta, finish in deltas
    ]
    chunks.append(shell | {"choices": [], "usage": _chat_usage(said.usage)})
    return b"".join(_data(chunk) for chunk in chunks) + b"data: [DONE]\n\n"


def _data(value: Json, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


# --- OpenAI's responses ------------------------------------------------------------------------------------------


def _response_items(said: Answered) -> list[Json]:
    items: list[Json] = [
        {
            "type": "reasoning",
            "id": f"rs_{i}",
            "summary": [{"type": "summary_text", "text": thought.text}],
            "encrypted_content": thought.seal,
        }
        for i, thought in enumerate(said.thoughts)
    ]
    if said.text or said.refusal:
        part = {"type": "output_text", "text": said.text, "annotations": [], "logprobs": []}
        if said.refusal:
            part = {"type": "refusal", "refusal": said.refusal}
        items.append({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]})
    return items + [
        {
            "type": "function_call",
            "id": f"fc_{i}",
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments,
            "status": "completed",
        }
        for i, call in enumerate(said.calls)
    ]


def _response(said: Answered, items: list[Json]) -> Json:
    usage = said.usage
    reason = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(said.finish)
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": "m",
        "status": "incomplete" if reason else "completed",
        "incomplete_details": {"reason": reason} if reason else None,
        "error": None,
        "output": items,
        "usage": {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": usage.cached_tokens,
                "cache_write_tokens": usage.cache_write_tokens,
            },
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        },
    }


def whole_response(said: Answered) -> bytes:
    """As the Responses API tells it."""
    return json.dumps(_response(said, _response_items(said))).encode()


def streamed_response(draw: Draw, said: Answered) -> bytes:
    """As its events."""
    items, events = _response_items(said), list[Json]()
    events.append({"type": "response.created", "response": _response(said, []) | {"status": "in_progress"}})
    for at, item in enumerate(items):
        begun = item | {"status": "in_progress"}
        here = {"output_index": at, "item_id": item["id"]}
        kind, text = "function_call_arguments", item.get("arguments", "")
        if item["type"] == "reasoning":
            begun, kind, text = begun | {"summary": []}, "reasoning_summary_text", item["summary"][0]["text"]
        elif item["type"] == "message":
            part = item["content"][0]
            kind = "refusal" if part["type"] == "refusal" else "output_text"
            begun, text = begun | {"content": []}, part.get("text") or part.get("refusal")
        else:
            begun |= {"arguments": ""}
        events.append({"type": "response.output_item.added", "output_index": at, "item": begun})
        events += [{"type": f"response.{kind}.delta", **here, "delta": piece} for piece in pieces(draw, text)]
        if item["type"] == "reasoning":
            events.append({"type": "response.reasoning_summary_part.done", **here, "summary_index": 0})
        events.append({"type": "response.output_item.done", "output_index": at, "item": item})
    done = _response(said, items)
    events.append({"type": f"response.{done['status']}", "response": done})
    return b"".join(_data({"sequence_number": i, **event}, event["type"]) for i, event in enumerate(events))


# --- Anthropic ---------------------------------------------------------------------------------------------------

_STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


def _anthropic_usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


def _anthropic_blocks(said: Answered) -> list[Json]:
    blocks: list[Json] = [
        {"type": "redacted_thinking", "data": thought.redacted}
        if thought.redacted
        else {"type": "thinking", "thinking": thought.text, "signature": thought.seal}
        for thought in said.thoughts
    ]
    blocks += [{"type": "text", "text": said.text}] if said.text else []
    calls = [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": _Verbatim(call.arguments)}
        for call in said.calls
    ]
    return blocks + calls


class _Verbatim:
    """JSON that stands in JSON as it is."""

    def __init__(self, text: str) -> None:
        self.text = text


def _dumped(value: Any) -> str:
    """JSON with what is verbatim in it."""
    if isinstance(value, _Verbatim):
        return value.text
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{_dumped(one)}" for name, one in value.items()) + "}"
    return "[" + ",".join(map(_dumped, value)) + "]" if isinstance(value, list) else json.dumps(value)


def _message(said: Answered, blocks: list[Json], stop: str | None) -> Json:
    shell = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": blocks}
    return shell | {"stop_reason": stop, "stop_sequence": None, "usage": _anthropic_usage(said.usage)}


def whole_message(said: Answered) -> bytes:
    """As Anthropic tells it."""
    return _dumped(_message(said, _anthropic_blocks(said), _STOPS[said.finish])).encode()


def streamed_message(draw: Draw, said: Answered) -> bytes:
    """As its events."""
    events: list[Json] = [{"type": "message_start", "message": _message(said, [], None)}]
    for index, block in enumerate(_anthropic_blocks(said)):
        here = {"index": index}
        kind, deltas = block["type"], list[Json]()
        match kind:
            case "text":
                begun = {"type": "text", "text": ""}
                deltas = [{"type": "text_delta", "text": piece} for piece in pieces(draw, block["text"])]
            case "thinking":
                begun = {"type": "thinking", "thinking": "", "signature": ""}
                deltas = [{"type": "thinking_delta", "thinking": piece} for piece in pieces(draw, block["thinking"])]
                deltas.append({"type": "signature_delta", "signature": block["signature"]})
            case "tool_use":
                begun = block | {"input": {}}
                written = "" if block["input"].text == "{}" else block["input"].text
                deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces(draw, written)]
            case _:
                begun = block
        events.append({"type": "content_block_start", **here, "content_block": begun})
        events += [{"type": "content_block_delta", **here, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", **here})
    stop = {"stop_reason": _STOPS[said.finish], "stop_sequence": None}
    events += [
        {"type": "message_delta", "delta": stop, "usage": _anthropic_usage(said.usage)},
        {"type": "message_stop"},
    ]
    return b"".join(_data(event, event["type"]) for event in events)


# --- Bedrock -----------------------------------------------------------------------------------------------------

_CONVERSE_STOPS = _STOPS | {"content_filter": "content_filtered"}


def _converse_usage(usage: Usage) -> Json:
    fresh = usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens
    return {
        "inputTokens": fresh,
        "outputTokens": usage.completion_tokens,
        "totalTokens": usage.prompt_tokens + usage.completion_tokens,
        "cacheReadInputTokens": usage.cached_tokens,
        "cacheWriteInputTokens": usage.cache_write_tokens,
    }


def whole_converse(said: Answered) -> bytes:
    """As Converse tells it."""
    blocks: list[Json] = [
        {"reasoningContent": {"redactedContent": thought.redacted}}
        if thought.redacted
        else {"reasoningContent": {"reasoningText": {"text": thought.text, "signature": thought.seal}}}
        for thought in said.thoughts
    ]
    blocks += [{"text": said.text}] if said.text else []
    blocks += [
        {"toolUse": {"toolUseId": call.id, "name": call.name, "input": _Verbatim(call.arguments)}}
        for call in said.calls
    ]
    answer = {
        "output": {"message": {"role": "assistant", "content": blocks}},
        "stopReason": _CONVERSE_STOPS[said.finish],
        "usage": _converse_usage(said.usage),
        "metrics": {"latencyMs": 1},
    }
    return _dumped(answer).encode()


def streamed_converse(draw: Draw, said: Answered) -> bytes:
    """As ConverseStream tells it."""
    frames = [frame_of("messageStart", {"role": "assistant"})]
    index = 0

    def deltas(*gained: Json) -> None:
        nonlocal index
        frames.extend(frame_of("contentBlockDelta", {"contentBlockIndex": index, "delta": one}) for one in gained)
        frames.append(frame_of("contentBlockStop", {"contentBlockIndex": index}))
        index += 1

    for thought in said.thoughts:
        if thought.redacted:
            deltas({"reasoningContent": {"redactedContent": thought.redacted}})
        else:
            texts = [{"reasoningContent": {"text": piece}} for piece in pieces(draw, thought.text)]
            deltas(*texts, {"reasoningContent": {"signature": thought.seal}})
    if said.text:
        deltas(*({"text": piece} for piece in pieces(draw, said.text)))
    for call in said.calls:
        start = {"toolUse": {"toolUseId": call.id, "name": call.name}}
        frames.append(frame_of("contentBlockStart", {"contentBlockIndex": index, "start": start}))
        deltas(*({"toolUse": {"input": piece}} for piece in pieces(draw, call.arguments)))
    frames.append(frame_of("messageStop", {"stopReason": _CONVERSE_STOPS[said.finish]}))
    frames.append(frame_of("metadata", {"usage": _converse_usage(said.usage), "metrics": {"latencyMs": 1}}))
    return b"".join(frames)


# --- Gemini ------------------------------------------------------------------------------------------------------

_GEMINI_STOPS = {"stop": "STOP", "length": "MAX_TOKENS", "tool_calls": "STOP", "content_filter": "SAFETY"}


def _gemini(parts: list[Json], said: Answered, *, last: bool) -> Json:
    candidate: Json = {"index": 0, "content": {"role": "model", "parts": parts}}
    if last:
        candidate["finishReason"] = _GEMINI_STOPS[said.finish]
    usage = said.usage
    counts = {
        "promptTokenCount": usage.prompt_tokens,
        "candidatesTokenCount": usage.completion_tokens - usage.reasoning_tokens,
        "thoughtsTokenCount": usage.reasoning_tokens,
        "cachedContentTokenCount": usage.cached_tokens,
        "totalTokenCount": usage.prompt_tokens + usage.completion_tokens,
    }
    return {"candidates": [candidate], "usageMetadata": counts, "modelVersion": "m"}


def _gemini_call(call: Called) -> Json:
    made: Json = {"functionCall": {"id": call.id, "name": call.name, "args": _Verbatim(call.arguments)}}
    return made | ({"thoughtSignature": call.seal} if call.seal else {})


def whole_gemini(said: Answered) -> bytes:
    """As generateContent tells it."""
    parts: list[Json] = [{"text": thought.text, "thought": True} for thought in said.thoughts]
    parts += [{"text": said.text}] if said.text else []
    return _dumped(_gemini([*parts, *map(_gemini_call, said.calls)], said, last=True)).encode()


def streamed_gemini(draw: Draw, said: Answered) -> bytes:
    """As streamGenerateContent tells it."""
    parts: list[Json] = [{"text": p, "thought": True} for t in said.thoughts for p in pieces(draw, t.text)]
    parts += [{"text": piece} for piece in pieces(draw, said.text)]
    parts += map(_gemini_call, said.calls)
    chunks = [_gemini([part], said, last=i == len(parts) - 1) for i, part in enumerate(parts)]
    lines = (_dumped(chunk).replace("\n", " ") for chunk in chunks)  # an event's data are one line
    return b"".join(f"data: {line}\r\n\r\n".encode() for line in lines)


Streamed = Callable[[Draw, Answered], bytes]
