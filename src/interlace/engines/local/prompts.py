"""From a request to the tokens a decoder continues, and to the rules its output must follow."""

from __future__ import annotations

from dataclasses import dataclass

from interlace.engines.local.constraints import Constraint, GrammarCompiler
from interlace.engines.local.template import ChatTemplate
from interlace.engines.local.tokenizer import Tokenizer
from interlace.engines.local.toolcalls import ToolCallParser
from interlace.engines.types import GenerateRequest
from interlace.errors import InvalidRequest


@dataclass(frozen=True)
class Prompts:
    """Everything about text that a model's requests share; safe to use from several threads."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    grammars: GrammarCompiler

    def encode(self, request: GenerateRequest) -> tuple[list[int], str | None]:
        """The prompt's token ids, and its text where it came as ids. Raises `InvalidRequest`."""
        if request.prompt_ids is not None:
            return self._checked(request.prompt_ids), self.tokenizer.decode(request.prompt_ids)
        if request.messages is None:
            return self.tokenizer.encode(request.prompt or "", special=True), None
        if self.template is None:
            raise InvalidRequest(
                "This model has no chat template, so it takes no messages: use /v1/completions.", param="model"
            )
        return self.template.render(...), None

    def constraints(self, request: GenerateRequest) -> list[Constraint | None]:
        """One constraint for each choice, or None for each; raises `InvalidRequest` on a rule that makes no sense."""
        constraint = self.grammars.compile(
            request.output, request.tools, request.tool_choice, request.parallel_tool_calls
        )
        if constraint is None:
            return [None] * request.n
        return [constraint, *(constraint.copy() for _ in range(request.n - 1))]

    def tool_parser(self, request: GenerateRequest) -> ToolCallParser | None:
        """A parser of tool calls where the request offers tools."""
        return ToolCallParser(request.tools) if request.tools and request.tool_choice != "none" else None

    def _checked(self, ids: tuple[int, ...]) -> list[int]:
        for token in ids:
            if not 0 <= token < self.tokenizer.vocabulary:
                raise InvalidRequest(
                    f"The prompt has token {token}; this model's ids go from 0 to {self.tokenizer.vocabulary - 1}.",
                    param="prompt",
                )
        return list(ids)
