"""What becomes of each field of OpenAI's chat, completions and embeddings: see `gateway.translation`."""

from __future__ import annotations

from interlace.gateway.translation import Carried, Denied, Here, Ignored, Place, Table, carried

_DEFAULTS = "left out: the model's own default"

SAMPLED: dict[str, Place] = {
    "model": Here("chooses the model or route"),
    "temperature": carried("sampling.temperature", how=_DEFAULTS),
    "top_p": carried("sampling.top_p", how=f"{_DEFAULTS}; 0 as the least there is"),
    "n": carried("n"),
    "stop": carried("sampling.stop"),
    "seed": carried("sampling.seed"),
    "presence_penalty": carried("sampling.presence_penalty"),
    "frequency_penalty": carried("sampling.frequency_penalty"),
    "logit_bias": carried("sampling.logit_bias"),
    "stream": Here("the answer comes in chunks; the engine streams in any case where it can"),
    "stream_options.include_usage": Here("a last chunk with the usage, which is the bill's"),
    "stream_options.include_obfuscation": Ignored("nothing is padded"),
    "top_k": carried("sampling.top_k"),
    "min_p": carried("sampling.min_p"),
    "repetition_penalty": carried("sampling.repetition_penalty"),
    "ignore_eos": carried("sampling.ignore_eos"),
    "structured_outputs.json": carried("output.json_schema"),
    "structured_outputs.regex": carried("output.regex"),
    "structured_outputs.grammar": carried("output.grammar"),
    "user": carried("options.user"),
    "metadata": carried("options.metadata"),
    "safety_identifier": carried("options.safety_identifier"),
    "service_tier": carried("options.service_tier"),
    "store": Ignored("answers are not stored; `/v1/responses` stores them"),
}

_NO_LEGACY = "OpenAI's retired way: use `tools`"

CHAT: Table = {
    **SAMPLED,
    "max_completion_tokens": carried("sampling.max_tokens"),
    "max_tokens": carried("sampling.max_tokens", how="the older name; not both"),
    "messages[].content[].text": Carried(),
    "messages[].content[].refusal": carried("part.refusal"),
    "messages[].content[].image_url.url": carried(
        "part.image.data", "part.image.url", "part.image.in_result", how="a `data:` URL is checked and taken apart"
    ),
    "messages[].content[].image_url.detail": carried("part.image.detail"),
    "messages[].content[].input_audio.data": carried("part.audio"),
    "messages[].content[].input_audio.format": carried("part.audio"),
    "messages[].content[].file.file_data": carried("part.file.data", "part.file.text", how="text as text"),
    "messages[].content[].file.filename": carried("part.file.name"),
    "messages[].content[].file.file_id": Here("the content of the uploaded file takes its place"),
    "messages[].content[].prompt_cache_breakpoint.mode": carried(
        "part.text.cache", "part.image.cache", "part.file.cache", "part.audio.cache"
    ),
    "messages[].content[].prompt_cache_breakpoint.ttl": carried(
        "part.text.cache", "part.image.cache", "part.file.cache", "part.audio.cache"
    ),
    "messages[].name": carried("message.name", how="of a result it is the function's, which its call says"),
    "messages[].role": carried("message.developer", "message.late_system", "part.in_instructions"),
    "messages[].refusal": carried("part.refusal"),
    "messages[].reasoning_content": carried("part.thinking.text", how="unless `thinking_blocks` are there"),
    "messages[].reasoning": carried("part.thinking.text", how="another name of `reasoning_content`"),
    "messages[].thinking_blocks[].type": carried("part.thinking.text"),
    "messages[].thinking_blocks[].thinking": carried("part.thinking.text"),
    "messages[].thinking_blocks[].signature": carried("part.thinking.signature"),
    "messages[].thinking_blocks[].data": carried("part.thinking.redacted"),
    "messages[].thinking_blocks[].index": Ignored("clients echo it; the order says the same"),
    "messages[].annotations": Ignored("clients echo it; models do not read it"),
    "messages[].audio": Denied("an earlier answer in sound is not kept here: send its text"),
    "messages[].function_call": Denied(_NO_LEGACY),
    "messages[].tool_call_id": carried("call"),
    "messages[].tool_calls[].id": carried("call"),
    "messages[].tool_calls[].type": carried("call"),
    "messages[].tool_calls[].index": Ignored("clients echo it; the order says the same"),
    "messages[].tool_calls[].function.name": carried("call"),
    "messages[].tool_calls[].function.arguments": carried("call"),
    "messages[].tool_calls[].custom.name": carried("call.custom"),
    "messages[].tool_calls[].custom.input": carried("call.custom"),
    "messages[].tool_calls[].extra_content.google.thought_signature": carried("call.signature"),
    "logprobs": carried("sampling.logprobs"),
    "top_logprobs": carried("sampling.logprobs"),
    "response_format.type": carried("output.json_object", "output.json_schema"),
    "response_format.json_schema.name": carried("output.json_schema"),
    "response_format.json_schema.schema": carried("output.json_schema"),
    "response_format.json_schema.description": carried("output.description"),
    "response_format.json_schema.strict": carried("output.lax"),
    "tools[].type": carried("tools.custom"),
    "tools[].custom.name": carried("tools.custom"),
    "tools[].custom.description": carried("tools.custom"),
    "tools[].custom.format.type": carried("tools.custom"),
    "tools[].custom.format.grammar.syntax": carried("tools.custom"),
    "tools[].custom.format.grammar.definition": carried("tools.custom"),
    "tools[].function.name": carried("tools"),
    "tools[].function.description": carried("tools"),
    "tools[].function.parameters": carried("tools"),
    "tools[].function.strict": carried("tools.strict"),
    "tool_choice": carried("tool_choice.none", "tool_choice.required"),
    "tool_choice.function.name": carried("tool_choice.function"),
    "tool_choice.custom.name": carried("tool_choice.function"),
    "tool_choice.allowed_tools.tools[].custom.name": carried("tools.custom", how="only the allowed ones are offered"),
    "tool_choice.allowed_tools.mode": carried("tool_choice.required"),
    "tool_choice.allowed_tools.tools[].function.name": carried("tools", how="only the allowed ones are offered"),
    "parallel_tool_calls": carried("parallel_tool_calls"),
    "continue_final_message": carried("prefill"),
    "add_generation_prompt": Ignored("`continue_final_message` says the same"),
    "reasoning_effort": carried("reasoning.effort"),
    "verbosity": carried("options.verbosity"),
    "prompt_cache_key": carried("options.cache_key"),
    "prompt_cache_retention": carried("options.cache_retention"),
    "prompt_cache_options": carried("native.aside"),
    "moderation": carried("native"),
    "prediction": carried("native.aside"),
    "modalities": Here('`["text"]`; anything else gets a 400'),
    "messages[].role=function": Denied(_NO_LEGACY),
    "audio": Denied("models answer in text"),
    "web_search_options": Denied("there is no web search"),
    "functions": Denied(_NO_LEGACY),
    "function_call": Denied(_NO_LEGACY),
}

COMPLETIONS: Table = {
    **SAMPLED,
    **dict.fromkeys(("metadata", "safety_identifier", "service_tier"), Ignored("it belongs to conversations")),
    "prompt": carried("prompt", "prompt_ids"),
    "max_tokens": carried("sampling.max_tokens", how="16 where it is left out, as OpenAI has it"),
    "echo": carried("sampling.prompt_logprobs", how="with `logprobs`; without, the prompt is shown again from here"),
    "logprobs": carried("sampling.logprobs"),
    "best_of": Here("only where it equals `n`: others get a 400"),
    "suffix": Denied("models here do not insert"),
}

EMBEDDINGS: Table = {
    "model": Here("chooses the model or route"),
    "input": Carried(),
    "encoding_format": Here("numbers, or base64"),
    "dimensions": Here("only the length that the model's embeddings have: others get a 400"),
    "user": Ignored("usage is recorded by API key"),
}
