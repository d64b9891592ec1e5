"""Grammars, as llguidance reads them (its variant of Lark), for answers of a given shape and for tool calls."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llguidance import LLMatcher, LLParserLimits

from interlace.engines.local.toolcalls import CLOSE_TAG, OPEN_TAG, ToolFormat
from interlace.engines.types import OutputRule, Tool
from interlace.errors import InvalidRequest


def _limits(*, row: int, items: int) -> LLParserLimits:
    """About a tenth of a second to compile and some milliseconds a token at the very most; llguidance gives their
    speeds. `row` and `items` bound what may be open at one place and what one mask may try."""
    return LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=items,
        max_items_in_row=row,
        max_lexer_states=50_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


LIMITS = _limits(row=2_000, items=50_000)
# A caller's own grammar may be ambiguous without bound, and a mask costs the product of both: with the limits above
# one was seen to take 1.4 s a token. A schema's brackets keep it from that, and four hundred optional properties need
# more.
_CALLERS_GRAMMAR_LIMITS = _limits(row=200, items=20_000)

_RULE_PARAMS = {
    "json_object": "response_format",
    "json_schema": "response_format.json_schema.schema",
    "regex": "structured_outputs.regex",
    "grammar": "structured_outputs.grammar",
}
# Small models like to fill an answer with blank lines; this still lets them indent.
_JSON_OPTIONS: Mapping[str, Any] = {"whitespace_flexible": True, "whitespace_pattern": r"[ \n\t]{0,40}"}
_LARGEST_SCHEMA = 1 << 18  # characters
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")


def rule_param(rule: OutputRule) -> str:
    """The request field a rule came from, for errors."""
    return _RULE_PARAMS[rule.kind]


def rule_limits(rule: OutputRule) -> LLParserLimits:
    """What checking text against the rule may cost."""
    return _CALLERS_GRAMMAR_LIMITS if rule.kind == "grammar" else LIMITS


def rule_grammar(rule: OutputRule) -> str:
    """The grammar of a whole answer; `InvalidRequest` when the schema is no JSON object. Nothing is compiled yet."""
    if rule.kind == "regex":
        return LLMatcher.grammar_from_regex(rule.rule)
    if rule.kind == "grammar":
        return LLMatcher.grammar_from_lark(rule.rule)
    return _from_schema(_json_schema(rule), _JSON_OPTIONS, rule_param(rule))


def calls_grammar(
    tools: Sequence[Tool], form: ToolFormat, *, forced: bool, parallel: bool, rule: OutputRule | None = None
) -> str:
    """Tool calls and nothing else (`forced`); else free text, in which from the tag on a call must be right.

    With a `rule` (JSON kinds only), what is no call must follow it.
    """
    lines = ["%llguidance {}"]
    if forced:
        lines += ["start: calls", f"calls: {_quoted(OPEN_TAG)} {_body(form, parallel)}"]
    elif rule is not None:
        lines += ["start: calls | answer", f"answer: %json {_with_options(_json_schema(rule))}"]
        lines += [f"calls: {_quoted(OPEN_TAG)} {_body(form, parallel)}"]
    else:
        lines += ["start: text | calls", "text: TEXT", r"TEXT: /(.|\n)*/"]
        lines += [f"opening[lazy]: TEXT {_quoted(OPEN_TAG)}", f"calls: opening {_body(form, parallel)}"]
    lines += ["call: " + " | ".join(f"call_{place}" for place in range(len(tools)))]
    lines += [_call(place, tool) for place, tool in enumerate(tools)]
    lines += [r"SPACE: /[ \n]{0,4}/"]
    return "\n".join(lines)


def arguments_schema(tool: Tool, param: str) -> dict[str, Any]:
    """The schema of a call's arguments, an object always. A tool without parameters takes an empty object."""
    if not tool.parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    schema = {"type": "object", **tool.parameters}
    if schema["type"] != "object":
        message = f'Parameters of a function must have "type": "object", not {schema["type"]!r}.'
        raise InvalidRequest(message, param=param)
    return schema


def arguments_grammar(tool: Tool, param: str) -> str:
    """The grammar of one tool's arguments alone, to find out whose schema is wrong."""
    schema = _bounded(json.dumps(arguments_schema(tool, param)), param)
    return _from_schema(schema, _tool_options(tool), param)


def _from_schema(schema: str, options: Mapping[str, Any], param: str) -> str:
    try:
        return LLMatcher.grammar_from_json_schema(schema, overrides=options)  # type: ignore[arg-type]
    except ValueError as error:
        raise InvalidRequest(f"The schema can't be read: {error}", param=param) from error


def _json_schema(rule: OutputRule) -> str:
    if rule.kind == "json_object":
        return '{"type": "object"}'
    param = rule_param(rule)
    try:
        schema = json.loads(_bounded(rule.rule, param))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"The schema is no valid JSON: {error}", param=param) from error
    if not isinstance(schema, dict):
        raise InvalidRequest("The schema must be a JSON object.", param=param)
    return json.dumps(schema)


def _bounded(schema: str, param: str) -> str:
    if len(schema) > _LARGEST_SCHEMA:
        raise InvalidRequest(
            f"The schema has {len(schema)} characters; at most {_LARGEST_SCHEMA} are allowed.", param=param
        )
    return schema


def _tool_options(tool: Tool) -> Mapping[str, Any]:
    """OpenAI checks keywords only of strict tools; for the others those that can't be enforced are passed over."""
    return _JSON_OPTIONS if tool.strict else {**_JSON_OPTIONS, "lenient": True}


def _with_options(schema: str, options: Mapping[str, Any] = _JSON_OPTIONS) -> str:
    return json.dumps({**json.loads(schema), "x-guidance": dict(options)})


def _call(place: int, tool: Tool) -> str:
    """A call's rule. Each schema is its own %json, so that its `#/$defs` are found."""
    param = f"tools[{place}].function.parameters"
    if not _NAME.fullmatch(tool.name):
        raise InvalidRequest(
            "A function's name has 1 to 128 letters, digits, dots, underscores or hyphens.",
            param=f"tools[{place}].function.name",
        )
    head = _quoted(f'{{"name": "{tool.name}", "arguments": ')
    schema = _with_options(json.dumps(arguments_schema(tool, param)), _tool_options(tool))
    return f'call_{place}: {head} %json {schema} "}}"'


def _body(form: ToolFormat, parallel: bool) -> str:
    """What follows the opening tag, the closing tag included."""
    close = _quoted(CLOSE_TAG)
    if form == "list":
        more = '("," SPACE call SPACE)*' if parallel else ""
        return f'SPACE "[" SPACE call SPACE {more} "]" SPACE {close}'
    more = f"(SPACE {_quoted(OPEN_TAG)} SPACE call SPACE {close})*" if parallel else ""
    return f"SPACE call SPACE {close} {more}"


def _quoted(text: str) -> str:
    return json.dumps(text)
