"""A neutral request in OpenAI's words.

Every field either goes out, or is refused by name: nothing a caller asked for is lost in silence. What the caller left
open (`GenerateRequest.unset`) and what changes nothing is left out, so that the server's own defaults hold.
"""

from __future__ import annotations

from typing import Any

import msgspec

from interlace.config import ModelSettings
from interlace.engines.remote.providers.openai_messages import messages_of
from interlace.engines.remote.providers.openai_peculiar import EXTENSIONS, Peculiarities, peculiarities_of
from interlace.engines.types import EmbedRequest, GenerateRequest, Options, OutputRule, Reasoning, Sampling, Tool
from interlace.errors import InvalidRequest

CHAT, COMPLETIONS, EMBEDDINGS = "/chat/completions", "/completions", "/embeddings"
DIALECT = "openai.chat"
STANDARD_ONLY = "standard_only"  # Anthropic's word for the tier that everybody gets
_EXTENSIONS = tuple((name, getattr(Sampling(), name)) for name in EXTENSIONS)  # with what changes nothing
_EFFORTS = ((4096, "low"), (16384, "medium"))  # the most tokens of thought, and the effort that takes about as many


def path_of(request: GenerateRequest) -> str:
    """Where a request goes: conversations to the chat endpoint, prompts to the older one."""
    return COMPLETIONS if request.messages is None else CHAT


def generate_body(request: GenerateRequest, settings: ModelSettings, *, ask_usage: bool) -> dict[str, Any]:
    """The JSON body of a request. Raises `InvalidRequest`, naming the field, for what the server does not know.

    `ask_usage`: ask a stream to end with its usage.
    """
    body: dict[str, Any] = {"model": settings.model}
    peculiar = peculiarities_of(settings)
    if request.messages is not None:
        body["messages"] = messages_of(request.messages, peculiar.manners)
    else:
        body["prompt"] = request.prompt if request.prompt is not None else list(request.prompt_ids or ())
    if request.n != 1:
        body["n"] = request.n
    _add_sampling(body, request, settings, peculiar)
    _add_logprobs(body, request)
    _add_tools(body, request)
    if request.output is not None:
        _add_output(body, request.output, chat=request.messages is not None, extensions=peculiar.structured)
    _add_options(body, request, settings, peculiar)
    if request.prefill:
        if not peculiar.prefill:
            raise _unknown("continue_final_message")
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    if settings.stream:
        body["stream"] = True
        if ask_usage and peculiar.stream_options:
            body["stream_options"] = {"include_usage": True}
    return body


def embed_body(request: EmbedRequest, settings: ModelSettings) -> dict[str, Any]:
    """The JSON body of an embedding request; base64 is a quarter of the digits."""
    given: list[Any] = [list(row) for row in request.ids] if request.ids else list(request.texts)
    return {"model": settings.model, "input": given, "encoding_format": "base64"}


# --- parts -------------------------------------------------------------------------------------------------------


def _add_sampling(
    body: dict[str, Any], request: GenerateRequest, settings: ModelSettings, peculiar: Peculiarities
) -> None:
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
        body[peculiar.seed] = sampling.seed
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    for name, plain in _EXTENSIONS:
        value = getattr(sampling, name)
        if name not in peculiar.sampling:
            if value != plain:
                raise _unknown(name)
        elif name not in request.unset and (name != "ignore_eos" or value):
            body[name] = value


def _add_options(
    body: dict[str, Any], request: GenerateRequest, settings: ModelSettings, peculiar: Peculiarities
) -> None:
    options, chat = request.options, request.messages is not None
    if options == _NO_OPTIONS and request.reasoning is None and not request.native:
        return
    if options.user and "user" in peculiar.options:
        body["user"] = options.user
    if not chat:
        return
    for name in ("verbosity", "service_tier", "safety_identifier"):
        if (value := getattr(options, name)) and name in peculiar.options:
            body[name] = peculiar.standard if value == STANDARD_ONLY else value
    for name in ("cache_key", "cache_retention"):
        if (value := getattr(options, name)) and name in peculiar.options:
            body[f"prompt_{name}"] = value
    if options.metadata and settings.store and "metadata" in peculiar.options:
        body |= {"metadata": dict(options.metadata), "store": True}
    if request.reasoning is not None and peculiar.reasoning and (effort := effort_of(request.reasoning)):
        body["reasoning_effort"] = effort
    if request.dialect == DIALECT:
        body.update(request.native)


_NO_OPTIONS = Options()


def effort_of(reasoning: Reasoning) -> str:
    """How hard to think, in the word that OpenAI's models know; "" leaves it to the model."""
    if reasoning.effort or not reasoning.budget_tokens:
        return reasoning.effort
    return next((word for most, word in _EFFORTS if reasoning.budget_tokens <= most), "high")


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
        chosen = "custom" if any(tool.kind for tool in request.tools if tool.name == name) else "function"
        body["tool_choice"] = {"type": chosen, chosen: {"name": name}}
    elif kind != "auto":
        body["tool_choice"] = kind
    if not request.parallel_tool_calls:
        body["parallel_tool_calls"] = False


def _custom(tool: Tool) -> dict[str, Any]:
    custom: dict[str, Any] = {"name": tool.name}
    if tool.description:
        custom["description"] = tool.description
    if (wanted := tool.native.get("format")) is not None:
        rule = {name: value for name, value in wanted.items() if name != "type"}
        custom["format"] = {"type": wanted["type"]} | ({"grammar": rule} if rule else {})
    return {"type": "custom", "custom": custom}


def _tool(tool: Tool) -> dict[str, Any]:
    if tool.kind:
        return _custom(tool)
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
        schema: dict[str, Any] = {"name": output.name, "schema": schema_of(output)}
        if output.description:
            schema["description"] = output.description
        if output.strict:
            schema["strict"] = True
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif extensions and output.kind == "json_schema":
        body["structured_outputs"] = {"json": schema_of(output)}
    elif extensions and output.kind in {"regex", "grammar"}:
        body["structured_outputs"] = {output.kind: output.rule}
    else:
        raise _unknown("structured_outputs")


def schema_of(output: OutputRule) -> dict[str, Any]:
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
