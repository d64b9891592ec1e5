"""What becomes of each field of `/v1/responses`: see `gateway.translation`."""

from __future__ import annotations

from interlace.gateway.responses_body import (
    CALL_FIELDS_ELSEWHERE,
    ENVIRONMENTS_ELSEWHERE,
    FIELDS_ELSEWHERE,
    ITEMS_ELSEWHERE,
    TOOL_FIELDS_ELSEWHERE,
    TOOLS_ELSEWHERE,
)
from interlace.gateway.translation import Carried, Denied, Here, Ignored, Place, Table, carried

_DEFAULTS = "left out: the model's own default"
_CACHED = ("part.text.cache", "part.image.cache", "part.file.cache")
_ECHOED = "clients echo it; models do not read it"


def _parts(where: str, **names: str) -> dict[str, Place]:
    """Of a list of parts: what a message holds, and what a function returned."""
    return {
        f"{where}.image_url": carried(
            "part.image.data", "part.image.url", *names.values(), how="a `data:` URL is checked"
        ),
        f"{where}.detail": carried("part.image.detail", how="of a picture; of a document it has no use"),
        f"{where}.file_data": carried(
            "part.file.data", "part.file.text", how="what is text is decoded, so guards read it"
        ),
        f"{where}.file_url": carried("part.file.url"),
        f"{where}.filename": carried("part.file.name"),
        f"{where}.file_id": Here("the content of the uploaded file takes its place"),
        f"{where}.prompt_cache_breakpoint.mode": carried(*_CACHED),
        f"{where}.prompt_cache_breakpoint.ttl": carried(*_CACHED),
        f"{where}.text": Carried(),
    }


RESPONSES: Table = {
    "model": Here("chooses the model or route"),
    "input": Carried(),
    "input[].type": Here("items of tools that run at OpenAI get a 400"),
    "input[].role": carried("message.developer", "message.late_system", "part.in_instructions"),
    **_parts("input[].content[]"),
    "input[].content[].text": carried(
        "part.thinking.text", how="of a thought, whose pieces become one with blank lines between; else the message"
    ),
    "input[].content[].refusal": carried("part.refusal"),
    "input[].content[].annotations": Ignored(_ECHOED),
    "input[].content[].logprobs": Ignored(_ECHOED),
    "input[].call_id": carried("call"),
    "input[].name": carried("call", how="of an output it is the function's, which its call says"),
    "input[].arguments": carried("call", "call.followed_by"),
    **_parts("input[].output[]", result="part.image.in_result"),
    "input[].input": carried("call.custom"),
    "input[].action": carried("call.kind"),
    "input[].environment": carried("call.kind"),
    "input[].operation": carried("call.kind"),
    "input[].max_output_length": carried("call.kind"),
    **{f"input[].output[].{name}": carried("call.kind") for name in ("stdout", "stderr", "outcome")},
    "input[].output": carried("call.kind", how="of shells and patches; of other tools it is the result's text"),
    "input[].encrypted_content": carried("part.thinking.signature", "part.thinking.redacted", "call.signature"),
    "input[].summary[].text": carried("part.thinking.summary"),
    "input[].id": Here("finds what a reference means; otherwise items are numbered anew"),
    "input[].status": Ignored(_ECHOED),
    "input[].phase": Ignored("phases of an answer are not told apart"),
    "instructions": Carried(how="as a system message before everything else"),
    "previous_response_id": Here("the stored items come before `input`"),
    "store": Here("the response is kept, unless false"),
    "background": Here("it runs on without its caller"),
    "stream": Here("the answer comes in events; the engine streams in any case where it can"),
    "stream_options.include_obfuscation": Ignored("nothing is padded"),
    "max_output_tokens": carried("sampling.max_tokens"),
    "max_tool_calls": Ignored("it counts calls of tools that run at OpenAI"),
    "metadata": carried("options.metadata", how="and comes back with the response"),
    "temperature": carried("sampling.temperature", how=_DEFAULTS),
    "top_p": carried("sampling.top_p", how=f"{_DEFAULTS}; 0 as the least there is"),
    "top_logprobs": carried("sampling.logprobs"),
    "include": carried(
        "sampling.logprobs", how="sealed thoughts are told from here; what belongs to tools at OpenAI asks for nothing"
    ),
    "text.format": carried("output.json_object", "output.json_schema"),
    "text.format.name": carried("output.json_schema"),
    "text.format.schema": carried("output.json_schema"),
    "text.format.description": carried("output.description"),
    "text.format.strict": carried("output.lax"),
    "text.verbosity": carried("options.verbosity"),
    "tools[].type": carried("tools.kind", "tools.custom", how="tools that run at OpenAI get a 400"),
    "tools[].format.type": carried("tools.custom"),
    "tools[].format.syntax": carried("tools.custom"),
    "tools[].format.definition": carried("tools.custom"),
    "tools[].environment.type": carried("tools.kind", how="`local` is the only one: others get a 400"),
    "tools[].environment.skills": carried("tools.kind"),
    "tools[].name": carried("tools"),
    "tools[].description": carried("tools"),
    "tools[].parameters": carried("tools"),
    "tools[].strict": carried(
        "tools.strict", how="left out: strict where the schema is one that OpenAI holds to strictly"
    ),
    "tool_choice": carried("tool_choice.none", "tool_choice.required"),
    "tool_choice.name": carried("tool_choice.function"),
    "tool_choice.type": carried("tool_choice.function", how="of shells and patches, which have no name"),
    "tool_choice.mode": carried("tool_choice.required", how="of `allowed_tools`"),
    "tool_choice.tools[].name": carried("tools", how="only the allowed ones are offered"),
    "parallel_tool_calls": carried("parallel_tool_calls"),
    "reasoning.effort": carried("reasoning.effort"),
    "reasoning.summary": carried("reasoning.summary"),
    "reasoning.generate_summary": carried("reasoning.summary", how="the older name"),
    "reasoning.context": carried("native", how="`auto` says nothing"),
    "reasoning.mode": Here("`standard`; anything else gets a 400"),
    "truncation": Here("`disabled`; `auto` gets a 400"),
    "client_metadata": Ignored("it tells OpenAI about the program that asks"),
    "service_tier": carried("options.service_tier"),
    "user": carried("options.user"),
    "safety_identifier": carried("options.safety_identifier"),
    "prompt_cache_key": carried("options.cache_key"),
    "prompt_cache_retention": carried("options.cache_retention"),
    "access_programs": carried("native"),
    "context_management": carried("native"),
    "image": carried("native"),
    "moderation": carried("native"),
    "prompt_cache_options": carried("native.aside"),
    **{name: Denied(mend) for name, mend in FIELDS_ELSEWHERE.items()},
    **{f"tools[].{name}": Denied(mend) for name, mend in TOOL_FIELDS_ELSEWHERE.items()},
    **{f"input[].{name}": Denied(mend) for name, mend in CALL_FIELDS_ELSEWHERE.items()},
    "input[].caller.type": Ignored("`direct` is the only one: others get a 400"),
    "input[].caller.type=program": Denied("only the model itself calls tools here"),
    **{f"input[].type={kind}": Denied("it belongs to tools that run at OpenAI") for kind in ITEMS_ELSEWHERE},
    **{f"tools[].type={kind}": Denied(mend) for kind, mend in TOOLS_ELSEWHERE.items()},
    **{
        f"tools[].environment.type={kind}": Denied("leave it out, and run the commands yourself")
        for kind in ENVIRONMENTS_ELSEWHERE
    },
    **{f"tool_choice.type={kind}": Denied("see `tools`") for kind in TOOLS_ELSEWHERE},
}
