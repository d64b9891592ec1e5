"""Output that must have a shape: which tokens may come next, through llguidance.

Every constraint is its own matcher with its own limits, so a bad rule, or one that grows too complex on the way, errs
in its own request and in no other. What came out is checked once more by `validate_output`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from interlace.engines.local.grammars import (
    LIMITS,
    arguments_grammar,
    calls_grammar,
    rule_grammar,
    rule_limits,
    rule_param,
)
from interlace.engines.local.tokenizer import Tokenizer
from interlace.engines.local.toolcalls import ToolFormat
from interlace.engines.local.validation import validate_output
from interlace.engines.types import OutputRule, Tool
from interlace.errors import CheckpointError, EngineFailed, InvalidRequest

__all__ = ["Constraint", "GrammarCompiler", "validate_output"]

_FORBIDDEN = "doesn't satisfy the grammar"  # llguidance's words; its `stop_reason` doesn't tell this from a limit


class Constraint:
    """Where one choice stands in its grammar. Use `copy()` for each further choice, before the first `advance`."""

    def __init__(self, matcher: LLMatcher, words: int, param: str) -> None:
        self._matcher = matcher
        self._words = words
        self._param = param

    def mask(self) -> NDArray[np.int32]:
        """Tokens allowed next, one bit each (bit `i % 32` of word `i // 32`), shape [ceil(vocabulary / 32)].

        Tokens that end a text are allowed once the output is complete, and alone when nothing may follow it.
        `InvalidRequest` when the grammar exceeds its limits at this place.
        """
        mask = np.zeros(self._words, np.int32)
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self._matcher.is_error():
            raise self._too_complex()
        return mask

    def advance(self, token_id: int) -> None:
        """Take the chosen token; after the end of the output any token is ignored.

        `InvalidRequest` when the grammar exceeds its limits at this place, `EngineFailed` for a token it forbids.
        """
        if self.finished or self._matcher.consume_token(token_id):
            return
        reason = _reason(self._matcher)
        if _FORBIDDEN in reason:
            raise EngineFailed(f"Token {token_id} broke the output rule: {reason}")
        raise self._too_complex()

    def _too_complex(self) -> InvalidRequest:
        return InvalidRequest(f"The output rule became too complex: {_reason(self._matcher)}", param=self._param)

    @property
    def finished(self) -> bool:
        """Whether the output is complete and nothing but an ending token may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def complete(self) -> bool:
        """Whether the output could end here."""
        return self._matcher.is_accepting()

    def copy(self) -> Constraint:
        """An independent constraint at the same place."""
        return Constraint(self._matcher.deep_copy(), self._words, self._param)


class GrammarCompiler:
    """Compiles rules for one tokenizer. Built once; `compile` may be called from any thread."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int | None = None) -> None:
        """`vocabulary`: the width of the logits, where the head is padded beyond the tokenizer's own ids."""
        self._size = max(vocabulary or 0, tokenizer.vocabulary)
        if not tokenizer.eos_ids:
            raise CheckpointError("The checkpoint names no token that ends a text, so output can't be constrained.")
        self._tokenizer = LLTokenizer(tokenizer.to_json(), n_vocab=self._size, eos_token=sorted(tokenizer.eos_ids))

    def compile(
        self,
        rule: OutputRule | None,
        tools: Sequence[Tool] = (),
        tool_choice: str = "auto",
        parallel: bool = True,
        form: ToolFormat = "list",
    ) -> Constraint | None:
        """The constraint a request asks for; None when anything goes. `InvalidRequest` names the field at fault.

        "required" and "function:NAME" force calls. "auto" leaves the choice to the model; the arguments are held to
        their schemas from the tag on if a tool is strict, and a rule applies to answers that are no call.
        """
        offered = _offered(tools, tool_choice)
        forced = tool_choice not in {"auto", "none"}
        if not offered or not (forced or rule is not None or any(tool.strict for tool in offered)):
            return None if rule is None else self._matcher(rule_grammar(rule), rule_param(rule), rule_limits(rule))
        if rule is not None and rule.kind in {"regex", "grammar"} and not forced:
            raise InvalidRequest(f'A {rule.kind} and tools exclude each other; set "tool_choice".', param="tool_choice")
        self._check_parameters(tools, offered)
        kept_rule = None if forced else rule
        grammar = calls_grammar(offered, form, forced=forced, parallel=parallel, rule=kept_rule)
        return self._matcher(grammar, rule_param(kept_rule) if kept_rule else "tools")

    def _check_parameters(self, tools: Sequence[Tool], offered: Sequence[Tool]) -> None:
        for place, tool in enumerate(tools):
            if tool in offered:
                param = f"tools[{place}].function.parameters"
                self._matcher(arguments_grammar(tool, param), param)

    def _matcher(self, grammar: str, param: str, limits: LLParserLimits = LIMITS) -> Constraint:
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise InvalidRequest(f"The output can't be held to this rule: {_reason(matcher)}", param=param)
        constraint = Constraint(matcher, -(-self._size // 32), param)
        constraint.mask()  # a rule nothing can satisfy, or too complex from the start, shows here
        return constraint


def _offered(tools: Sequence[Tool], tool_choice: str) -> list[Tool]:
    """The tools the model may call under that choice."""
    if tool_choice == "none":
        return []
    kind, _, name = tool_choice.partition(":")
    offered = [tool for tool in tools if kind != "function" or tool.name == name]
    if not offered and tool_choice != "auto":
        wanted = f"no tool is named {name!r}" if kind == "function" else "no tools are given"
        raise InvalidRequest(f'"tool_choice" asks for a call, but {wanted}.', param="tool_choice")
    return offered


def _reason(matcher: LLMatcher) -> str:
    return matcher.get_error().removesuffix("<non-verbose/>").strip()[:500]
