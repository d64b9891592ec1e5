"""One continuation of one request: what becomes of each token it is given, from the sampler to the reader's text."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field

from interlace.engines.local.constants import Array
from interlace.engines.local.constraints import Constraint
from interlace.engines.local.decoder import Decoder
from interlace.engines.local.prompts import Prompts
from interlace.engines.local.sampler import Sampled, SamplerState
from interlace.engines.local.sequences import Sequence
from interlace.engines.local.stops import StopFinder
from interlace.engines.local.tokenizer import Tokenizer
from interlace.engines.local.toolcalls import ToolCallParser
from interlace.engines.local.validation import validate_output
from interlace.engines.types import (
    Delta,
    FinishReason,
    GenerateRequest,
    OutputRule,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
)
from interlace.errors import EngineFailed


@dataclass(eq=False)
class Choice:
    """Turns tokens into deltas: decodes, looks for stop strings, parses tool calls, and knows when to end.

    Text may lag behind tokens: half characters and what could become a stop string are held back. The logprobs of
    tokens whose text is held back wait with it, and go the way of their text when a stop string swallows it.
    """

    index: int
    sampler: SamplerState
    tokenizer: Tokenizer
    decoder: Decoder
    stops: StopFinder
    max_tokens: int
    end_ids: frozenset[int]
    constraint: Constraint | None = None
    rule: OutputRule | None = None
    tools: ToolCallParser | None = None
    argument_rules: Mapping[str, OutputRule] = field(default_factory=dict)  # of the strict tools, by name
    wants_logprobs: bool = False
    top_logprobs: int = 0

    sequence: Sequence | None = None
    tokens: int = 0
    finished: bool = False
    _called_tools: bool = False
    _decoded: int = 0  # characters so far, held back ones included
    _shown: int = 0
    _text: list[str] = field(default_factory=list)  # kept only where the output is validated at its end
    _logprobs: list[tuple[int, TokenLogprob]] = field(default_factory=list)  # with where the token's text begins

    @classmethod
    def create(cls, index: int, request: GenerateRequest, prompts: Prompts, prompt_ids: Rows[int],
               constraint: Constraint | None, max_tokens: int) -> Choice:  # fmt: skip
        """Choice number `index` of a request, ready for its first token."""
        sampling, tokenizer = request.sampling, prompts.tokenizer
        return cls(
            index=index,
            sampler=SamplerState.create(sampling, tokenizer.vocabulary, prompt_ids, index),
            tokenizer=tokenizer,
            decoder=tokenizer.decoder(),
            stops=StopFinder(sampling.stop),
            max_tokens=max_tokens,
            end_ids=frozenset() if sampling.ignore_eos else tokenizer.eos_ids,
            constraint=constraint,
            rule=request.output,
            tools=prompts.tool_parser(request),
            argument_rules=prompts.argument_rules(request),
            wants_logprobs=sampling.logprobs is not None,
            top_logprobs=sampling.logprobs or 0,
        )

    def mask(self) -> Array | None:
        """Which tokens the constraint allows next, packed; None where all are."""
        return None if self.constraint is None else self.constraint.mask()

    def accept(self, sampled: Sampled) -> Delta:
        """Take the next token. Raises `EngineFailed` where a finished output breaks its own rule."""
        self.tokens += 1
        self.sampler.observe(sampled.id)
        if sampled.id in self.end_ids:
            return self._end("stop")
        if self.constraint is not None:
            self.constraint.advance(sampled.id)
        text = self.decoder.push(sampled.id)
        if self.wants_logprobs:
            self._logprobs.append((self._decoded, token_logprob(self.tokenizer, sampled)))
        self._decoded += len(text)
        shown, stop = self.stops.push(text)
        if stop is not None:
            return self._end("stop", shown, stop)
        if self.constraint is not None and self.constraint.finished:
            return self._end("stop", shown)
        if self.tokens >= self.max_tokens:
            return self._end("length", shown)
        return self._delta(shown)

    def end_without_tokens(self) -> Delta:
        """The one delta of a choice that was asked for no tokens."""
        return self._end("length")

    # --- rendering -------------------------------------------------------------------------------------------

    def _end(self, reason: FinishReason, shown: str = "", stop: str | None = None) -> Delta:
        """The last delta: whatever is held back comes out, unless a stop string was found."""
        self.finished = True
        if stop is None:
            tail, stop = self.stops.push(self.decoder.flush())
            shown += tail
            if stop is None:
                shown += self.stops.flush()
            else:
                reason = "stop"
        return self._delta(shown, reason, stop)

    def _delta(self, shown: str, reason: FinishReason | None = None, stop: str | None = None) -> Delta:
        self._shown += len(shown)
        content, calls = self._parse(shown, reason)
        for call in calls:
            self._called_tools = True
            if (rule := self.argument_rules.get(call.name or "")) and reason != "length":
                self._validate(rule, call.arguments)
        if self.rule is not None:  # for an answer that is no call
            self._text.append(shown)
            if reason == "stop" and stop is None and not self._called_tools:
                self._validate(self.rule, "".join(self._text))
        if reason == "stop" and stop is None and self._called_tools:
            reason = "tool_calls"
        keep_rest = reason is not None and stop is None
        return Delta(
            index=self.index,
            text=content,
            tokens=0 if self.tokens == 0 else 1,
            logprobs=self._take_logprobs(keep_rest=keep_rest) if self._logprobs else (),
            tool_calls=calls,
            finish_reason=reason,
            stop=stop,
        )

    def _parse(self, shown: str, reason: FinishReason | None) -> tuple[str, tuple[ToolCallDelta, ...]]:
        if self.tools is None:
            return shown, ()
        pieces = [*self.tools.push(shown), *(self.tools.finish(cut=reason == "length") if reason else ())]
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        return text, tuple(piece for piece in pieces if isinstance(piece, ToolCallDelta))

    def _validate(self, rule: OutputRule, text: str) -> None:
        problem = validate_output(rule, text)
        if problem is not None:
            raise EngineFailed(f"The model's output does not follow the asked-for format: {problem}")

    def _take_logprobs(self, *, keep_rest: bool) -> tuple[TokenLogprob, ...]:
        """Logprobs of the tokens whose text is out; at the end of an answer that no stop string cut, of all."""
        out = [entry for begin, entry in self._logprobs if keep_rest or begin < self._shown]
        self._logprobs = [] if keep_rest else self._logprobs[len(out) :]
        return tuple(out)


def token_logprob(tokenizer: Tokenizer, sampled: Sampled) -> TokenLogprob:
    """A sampler's result with the bytes of its tokens."""
    top = tuple(TopLogprob(token, tokenizer.token_bytes(token), logprob) for token, logprob in sampled.top)
    return TokenLogprob(sampled.id, tokenizer.token_bytes(sampled.id), sampled.logprob, top)
