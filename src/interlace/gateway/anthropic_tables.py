"""What becomes of each field of Anthropic's messages and counts: see `gateway.translation`."""

from __future__ import annotations

from interlace.gateway.translation import Carried, Denied, Here, Ignored, Place, Table, carried

_TEXT_ALONE = Ignored("clients echo what an answer cited; models read the text")
_NO_TOOLSETS = Denied("toolsets are run by Anthropic: name a tool of your own")
_UPLOADED = Here("the content of the uploaded file takes its place")
_NO_RESULTS = Denied("answers do not cite: send what was found as text")
_MARKS = carried("part.text.cache", "part.image.cache", "part.file.cache", "message.cache", "call.cache")
_BLOCKS_ELSEWHERE = (
    "bash_code_execution_tool_result",
    "code_execution_tool_result",
    "container_upload",
    "server_tool_use",
    "text_editor_code_execution_tool_result",
    "tool_search_tool_result",
    "web_fetch_tool_result",
    "web_search_tool_result",
)
_TOOLS_ELSEWHERE = (
    "browser_toolset",
    "code_execution",
    "computer_toolset",
    "tool_search_tool_bm25",
    "tool_search_tool_regex",
    "web_fetch",
    "web_search",
)
_LAST_MARK = carried(
    "part.text.cache", "part.image.cache", "part.file.cache", "message.cache", how="as a mark on the last block"
)


def _blocks(prefix: str, *result: str) -> dict[str, Place]:
    """The fields of texts, pictures and documents."""
    return {
        f"{prefix}text": Carried(),
        f"{prefix}citations": _TEXT_ALONE,
        f"{prefix}cache_control.type": _MARKS,
        f"{prefix}cache_control.ttl": _MARKS,
        f"{prefix}source.data": carried(
            "part.image.data", "part.file.data", "part.file.text", *result, how="base64 is checked"
        ),
        f"{prefix}source.media_type": carried("part.image.data", "part.file.data", "part.file.text", *result),
        f"{prefix}source.url": carried(
            "part.image.url", "part.file.url", *result, how="passed on, never fetched from here"
        ),
        f"{prefix}source.file_id": _UPLOADED,
        f"{prefix}source.content": Denied("send a document's text as type `text`"),
        f"{prefix}title": carried("part.file.name"),
        f"{prefix}context": Denied("say in a text block what the document is"),
        f"{prefix}citations.enabled": Denied("answers do not cite; false asks for nothing"),
        f"{prefix}transformations": Denied("pictures are passed on as they are"),
    }


COUNT: Table = {
    "model": Here("chooses the model or route"),
    "messages[].role": carried("message.late_system", "prefill", how="the assistant's as the last one is a prefill"),
    **_blocks("messages[].content[]."),
    "messages[].content[].thinking": carried("part.thinking.text"),
    "messages[].content[].signature": carried("part.thinking.signature"),
    "messages[].content[].data": carried("part.thinking.redacted"),
    "messages[].content[].id": carried("call", "call.signature", how="a provider's seal on a call travels in its id"),
    "messages[].content[].name": carried("call"),
    "messages[].content[].input": carried("call", "call.followed_by", how="as JSON text"),
    "messages[].content[].caller.type": Ignored("`direct` is the only one: others get a 400"),
    "messages[].content[].toolset_name": _NO_TOOLSETS,
    "messages[].content[].tool_use_id": carried("call"),
    "messages[].content[].is_error": carried("message.is_error"),
    **_blocks("messages[].content[].content[].", "part.image.in_result"),
    "system[].text": Carried(),
    "system[].citations": _TEXT_ALONE,
    "system[].cache_control.type": _MARKS,
    "system[].cache_control.ttl": _MARKS,
    "cache_control.type": _LAST_MARK,
    "cache_control.ttl": _LAST_MARK,
    "tools[].name": carried("tools"),
    "tools[].description": carried("tools"),
    "tools[].input_schema": carried("tools"),
    "tools[].type": carried(
        "tools.kind", how="`custom` says nothing; others that callers run pass, those that Anthropic runs get a 400"
    ),
    "tools[].display_height_px": carried("tools.kind"),
    "tools[].display_number": carried("tools.kind"),
    "tools[].display_width_px": carried("tools.kind"),
    "tools[].enable_zoom": carried("tools.kind"),
    "tools[].max_characters": carried("tools.kind"),
    "tools[].strict": carried("tools.strict"),
    "tools[].cache_control.type": carried("tools.cache"),
    "tools[].cache_control.ttl": carried("tools.cache"),
    "tools[].allowed_callers": carried("tools.native", how="`direct` alone says nothing"),
    "tools[].defer_loading": carried("tools.native"),
    "tools[].eager_input_streaming": carried("native.aside"),
    "tools[].input_examples": carried("tools.native"),
    "tool_choice.type": carried("tool_choice.none", "tool_choice.required", "tool_choice.function"),
    "tool_choice.name": carried("tool_choice.function"),
    "tool_choice.disable_parallel_tool_use": carried("parallel_tool_calls"),
    "output_config.format.type": carried("output.json_schema"),
    "output_config.format.schema": carried("output.json_schema"),
    "output_format.type": carried("output.json_schema", how="the older name; not both"),
    "output_format.schema": carried("output.json_schema", how="the older name; not both"),
    "output_config.effort": carried("reasoning.effort"),
    "thinking.type": carried(
        "reasoning.adaptive",
        "reasoning.effort",
        "native.aside",
        "native",
        how="`disabled` as no effort; `between_tools` for Anthropic's own models only",
    ),
    "thinking.budget_tokens": carried("reasoning.budget_tokens"),
    "thinking.display": carried("reasoning.summary"),
    "compaction": carried("native"),
    "context_management": carried("native.aside"),
    "speed": carried("native.aside", how="`standard` says nothing"),
    "user_profile_id": carried("native"),
    "workspace_id": carried("native"),
    **{
        f"messages[].content[].type={kind}": Denied("it belongs to tools that Anthropic runs")
        for kind in _BLOCKS_ELSEWHERE
    },
    **{f"tools[].type={kind}": Denied("offer a custom tool, with an input_schema") for kind in _TOOLS_ELSEWHERE},
    "messages[].content[].caller.type=code_execution": Denied("only the model itself calls tools here"),
    "messages[].content[].type=search_result": _NO_RESULTS,
    "messages[].content[].content[].type=search_result": _NO_RESULTS,
    "messages[].content[].content[].type=tool_reference": Denied("list all tools in `tools`"),
    "messages[].content[].content[].type=browser_state": Denied("send what the browser shows as text"),
    "mcp_servers": Denied("call the tools yourself, and offer them in `tools`"),
}

MESSAGES: Table = {
    **COUNT,
    "max_tokens": carried("sampling.max_tokens"),
    "stream": Here("the answer comes as events; the engine streams in any case where it can"),
    "stop_sequences": carried("sampling.stop"),
    "temperature": carried("sampling.temperature", how="left out: the model's own default"),
    "top_p": carried("sampling.top_p", how="left out: the model's own default"),
    "top_k": carried("sampling.top_k", how="left out: the model's own default"),
    "metadata.user_id": carried("options.user"),
    "service_tier": carried("options.service_tier"),
    "container": carried("native"),
    "diagnostics": carried("native.aside"),
    "fallbacks": carried("native"),
    "inference_geo": carried("native"),
    "thread": carried("native"),
}
