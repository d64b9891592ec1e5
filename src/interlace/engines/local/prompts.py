"""From a request to the tokens a decoder continues, and to the rules its output must follow."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

from interlace.engines.local.constraints import Constraint, GrammarCompiler
from interlace.engines.local.grammars import arguments_schema
from interlace.engines.local.template import ChatTemplate
from interlace.engines.local.tokenizer import Tokenizer
from interlace.engines.local.toolcalls import ToolCallParser, ToolFormat
from interlace.engines.types import GenerateRequest, OutputRule
from interlace.errors import InvalidRequest

_RANDOMNESS = random.SystemRandom()  # ids of tool calls


@dataclass(frozen=True)
class Prompts:
    """Everything about text that a model's requests share; safe to use from several threads."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    grammars: GrammarCompiler

    @property
    def tool_format(self) -> ToolFormat:
        """The form in which the template asks the model for tool calls."""
        return "list" if self.template is None else self.template.tool_format

    def encode(self, request: GenerateRequest) -> tuple[list[int], str | None]:
        """The prompt's token ids, unchecked where they came as ids, and then also its text. Raises `InvalidRequest`."""
        if request.prompt_ids is not None:
            known = [token for token in request.prompt_ids if 0 <= token < self.tokenizer.vocabulary]
            return list(request.prompt_ids), self.tokenizer.decode(known, special=True)
        if request.messages is None:
            return self.tokenizer.encode(request.prompt or "", special=True, framed=True), None
        if self.template is None:
            raise InvalidRequest(
                "This model has no chat template, so it takes no messages: use /v1/completions.", param="model"
            )
        tools = request.tools if _offers_tools(request) else ()
        rendered = self.template.render(request.messages, tools, prefill=request.prefill)
        return self.tokenizer.encode_pieces(rendered.pieces), None

    def constraints(self, request: GenerateRequest) -> list[Constraint | None]:
        """One constraint for each choice, or None for each; raises `InvalidRequest` on a rule that makes no sense."""
        constraint = self.grammars.compile(
            request.output, request.tools, request.tool_choice, request.parallel_tool_calls, self.tool_format
        )
        if constraint is None:
            return [None] * request.n
        return [constraint, *(constraint.copy() for _ in range(request.n - 1))]

    def tool_parser(self, request: GenerateRequest) -> ToolCallParser | None:
        """A parser of tool calls where the request offers tools."""
        return ToolCallParser(request.tools, _RANDOMNESS) if _offers_tools(request) else None

    def argument_rules(self, request: GenerateRequest) -> dict[str, OutputRule]:
        """What a finished call's arguments must follow, for those tools whose schemas are promised to be kept."""
        strict = [tool for tool in request.tools if tool.strict and request.tool_choice != "none"]
        return {tool.name: OutputRule("json_schema", json.dumps(arguments_schema(tool, "tools"))) for tool in strict}


def _offers_tools(request: GenerateRequest) -> bool:
    return bool(request.tools) and request.tool_choice != "none"
