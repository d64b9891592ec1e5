"""A neutral request in OpenAI's words.

Every field either goes out, or is refused by name: nothing a caller asked for is lost in silence. What the caller left
open (`GenerateRequest.unset`) and what changes nothing is left out, so that the server's own defaults hold.
"""

from __future__ import annotations

from typing import Any

import msgspec

from interlace.config import ModelSettings
from interlace.engines.types import EmbedRequest, GenerateRequest, Message, OutputRule, Sampling, Tool
from interlace.errors import InvalidRequest

CHAT, COMPLETIONS, EMBEDDINGS = "/chat/completions", "/completions", "/embeddings"


def path_of(request: GenerateRequest) -> str:
    """Where a request goes: conversations to the chat endpoint, prompts to the older one."""
    return COMPLETIONS if request.messages is None else CHAT


def generate_body(request: GenerateRequest, settings: ModelSettings, *, ask_usage: bool) -> dict[str, Any]:
    """The JSON body of a request. Raises `InvalidRequest`, naming the field, for what the server does not know.

    `ask_usage`: ask a stream to end with its usage.
    """
    body: dict[str, Any] = {"model": settings.model}
    if request.messages is not None:
        body["messages"] = [_message(message) for message in request.messages]
    else:
        body["prompt"] = request.prompt if request.prompt is not None else list(request.prompt_ids or ())
    if request.n != 1:
        body["n"] = request.n
    _add_sampling(body, request, settings)
    _add_logprobs(body, request)
    _add_tools(body, request)
    if request.output is not None:
        _add_output(body, request.output, chat=request.messages is not None, extensions=bool(settings.extensions))
    if settings.stream:
        body["stream"] = True
        if ask_usage:
            body["stream_options"] = {"include_usage": True}
    return body


def embed_body(request: EmbedRequest, settings: ModelSettings) -> dict[str, Any]:
    """The JSON body of an embedding request; base64 is a quarter of the digits."""
    given: list[Any] = [list(row) for row in request.ids] if request.ids else list(request.texts)
    return {"model": settings.model, "input": given, "encoding_format": "base64"}


# --- parts -------------------------------------------------------------------------------------------------------


def _message(message: Message) -> dict[str, Any]:
    body: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.name is not None:
        body["name"] = message.name
    if message.tool_calls:
        body["content"] = message.text or None
        body["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        body["tool_call_id"] = message.tool_call_id
    return body


def _add_sampling(body: dict[str, Any], request: GenerateRequest, settings: ModelSettings) -> None:
    sampling = request.sampling
    if sampling.max_tokens is not None:
        field = settings.max_tokens_field or "max_tokens"
        body[field if request.messages is not None else "max_tokens"] = sampling.max_tokens
    for name in ("temperature", "top_p"):
        if name not in request.unset:
            body[name] = getattr(sampling, name)
    for name in ("presence_penalty", "frequency_penalty"):
        if value := getattr(sampling, name):
            body[name] = value
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if settings.extensions:
        _add_extensions(body, request)
    else:
        _refuse_extensions(sampling)


def _add_extensions(body: dict[str, Any], request: GenerateRequest) -> None:
    for name in ("top_k", "min_p", "repetition_penalty"):
        if name not in request.unset:
            body[name] = getattr(request.sampling, name)
    if request.sampling.ignore_eos:
        body["ignore_eos"] = True


def _refuse_extensions(sampling: Sampling) -> None:
    plain = Sampling()
    for name in ("top_k", "min_p", "repetition_penalty", "ignore_eos"):
        if getattr(sampling, name) != getattr(plain, name):
            raise _unknown(name)


def _add_logprobs(body: dict[str, Any], request: GenerateRequest) -> None:
    sampling = request.sampling
    if sampling.prompt_logprobs:
        raise InvalidRequest(
            "This model runs on another server, which cannot tell logprobs of the prompt: leave out 'echo' or "
            "'logprobs'.",
            param="echo",
            code="unsupported_parameter",
        )
    if sampling.logprobs is None:
        return
    if request.messages is None:
        body["logprobs"] = sampling.logprobs
    else:
        body["logprobs"] = True
        if sampling.logprobs:
            body["top_logprobs"] = sampling.logprobs


def _add_tools(body: dict[str, Any], request: GenerateRequest) -> None:
    if not request.tools:
        return
    if request.messages is None:
        raise InvalidRequest("Tools need a conversation. Use 'messages'.", param="tools", code="unsupported_parameter")
    body["tools"] = [_tool(tool) for tool in request.tools]
    kind, _, name = request.tool_choice.partition(":")
    if kind == "function":
        body["tool_choice"] = {"type": "function", "function": {"name": name}}
    elif kind != "auto":
        body["tool_choice"] = kind
    if not request.parallel_tool_calls:
        body["parallel_tool_calls"] = False


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters:
        function["parameters"] = dict(tool.parameters)
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _add_output(body: dict[str, Any], output: OutputRule, *, chat: bool, extensions: bool) -> None:
    if chat and output.kind == "json_object":
        body["response_format"] = {"type": "json_object"}
    elif chat and output.kind == "json_schema":
        schema: dict[str, Any] = {"name": output.name, "schema": _schema(output)}
        if output.description:
            schema["description"] = output.description
        if output.strict:
            schema["strict"] = True
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif extensions and output.kind == "json_schema":
        body["structured_outputs"] = {"json": _schema(output)}
    elif extensions and output.kind in {"regex", "grammar"}:
        body["structured_outputs"] = {output.kind: output.rule}
    else:
        raise _unknown("structured_outputs")


def _schema(output: OutputRule) -> dict[str, Any]:
    """The schema as an object: text from a caller never goes into a body unread."""
    try:
        schema = msgspec.json.decode(output.rule)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise InvalidRequest("The JSON schema is not a JSON object.", param="response_format", code="invalid_value")
    return schema


def _unknown(name: str) -> InvalidRequest:
    return InvalidRequest(
        f"The server behind this model does not know '{name}'. Leave it out.", param=name, code="unsupported_parameter"
    )
