"""The default engine: continuous batching over one compiled decoder. The `Core` that an engine host drives.

    prepare → add → [ schedule → forward → sample → tell each choice its token ] → events

`prepare` runs on a reader thread and touches no shared state; everything else runs on the stepping thread.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from interlace.engines.local.adapter_bank import Adapter
from interlace.engines.local.adapters import AdapterStore, Ticket
from interlace.engines.local.choice import Choice, token_logprob
from interlace.engines.local.constants import Array
from interlace.engines.local.constraints import Constraint
from interlace.engines.local.crowd import crowded_out
from interlace.engines.local.graph import BLOCK
from interlace.engines.local.prompts import Prompts
from interlace.engines.local.runner import Run, Runner
from interlace.engines.local.sampler import Sampled, check_sampling, prompt_logprobs, sample
from interlace.engines.local.scheduler import Scheduler
from interlace.engines.local.sequences import Sequence, Slice
from interlace.engines.types import (
    Capabilities,
    Delta,
    EmbedRequest,
    GenerateRequest,
    Health,
    Outcome,
    Started,
    TokenLogprob,
    Usage,
)
from interlace.errors import ContextLengthExceeded, EngineFailed, InterlaceError, InvalidRequest, Overloaded
from interlace.models import SuggestedSampling

log = logging.getLogger(__name__)

MAX_CHOICES = 128  # OpenAI's bound on n
PARKED_SECONDS = 0.005  # how long a step without work waits for an adapter, and new requests with it
PROMPT_LOGPROB_ROWS = 128  # a row of logits is 4 bytes x vocabulary: bounds what one step holds for `echo`


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request ready to be queued: its token ids, and one constraint per choice (or none)."""

    request: GenerateRequest
    ids: list[int]
    prompt_text: str | None
    constraints: list[Constraint | None]
    ticket: Ticket | None = None  # for its adapter


@dataclass(eq=False)
class _Task:
    """One request under way: its choices, and what has been counted."""

    request: GenerateRequest
    prompt_ids: list[int]
    prompt_text: str | None
    choices: list[Choice]
    ticket: Ticket | None = None  # until its end, which gives it back
    started: bool = False
    cached_tokens: int = 0  # of the prompt, found in the cache
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def reads_prompt(self) -> bool:
        """Whether the logprobs of prompt tokens are still being collected."""
        return self.request.sampling.prompt_logprobs and not self.started

    @property
    def adapter(self) -> Adapter | None:
        """What its sequences are computed with."""
        return self.ticket.adapter if self.ticket else None

    def usage(self) -> Usage:
        written = sum(choice.tokens for choice in self.choices)
        return Usage(len(self.prompt_ids), written, cached_tokens=self.cached_tokens)


class LocalEngine:
    """Continuous batching over one decoder: see `interlace.engines.core.Core` for the contract of each method."""

    def __init__(
        self,
        runner: Runner,
        prompts: Prompts,
        *,
        suggested: SuggestedSampling,
        vocabulary: int,
        context_length: int,
        max_sequences: int,
        max_waiting: int,
        step_tokens: int,
        precision: str,
        adapters: AdapterStore,
        border: int = 0,
    ) -> None:
        self._runner = runner
        self._adapters = adapters
        self._prompts = prompts
        self._tokenizer = prompts.tokenizer
        # A head may be padded beyond the tokenizer's ids, and a tokenizer may know ids the model was not given.
        self._vocabulary = min(prompts.tokenizer.vocabulary, vocabulary)
        self._scheduler = Scheduler(
            blocks=runner.cache_blocks, max_running=max_sequences, step_tokens=step_tokens, border=border
        )
        self._context_length = min(context_length, runner.cache_blocks * BLOCK - 1)
        self._suggested = {k: v for k, v in msgspec.structs.asdict(suggested).items() if v is not None}
        self._max_waiting = max_waiting
        self._precision = precision
        self._tasks: dict[str, _Task] = {}
        self._parked: list[_Task] = []  # until their adapter is in memory
        self._outcomes: list[tuple[str, Outcome]] = []

    # --- the contract of Core --------------------------------------------------------------------------------

    def prepare(self, request: GenerateRequest | EmbedRequest) -> Prepared:
        """Render and tokenise the prompt, check lengths and ids, compile the constraint, have the adapter loaded. Runs
        beside `step`."""
        request = _generation(request)
        ticket = (
            self._adapters.ask(request.adapter, request.tenant) if request.adapter else None
        )  # loads while the rest is done
        if not 1 <= request.n <= MAX_CHOICES:
            raise InvalidRequest(f"n must be from 1 to {MAX_CHOICES}, not {request.n}.", param="n")
        request = self._with_suggestions(request)
        check_sampling(request.sampling, self._vocabulary)
        ids, prompt_text = self._prompt(request)
        constraints = self._prompts.constraints(request)
        return Prepared(request, ids, prompt_text, constraints, ticket)

    def count(self, request: GenerateRequest | EmbedRequest) -> int:
        """Tokens of the prompt; refuses one that `prepare` would refuse."""
        ids, _ = self._prompt(_generation(request))
        return len(ids)

    def add(self, prepared: Prepared) -> None:
        """Queue the request's choices, or refuse with `Overloaded` when they would not fit the queue, nor their
        organisation's part of it."""
        request = prepared.request
        room = self._max_waiting + self._scheduler.could_start(len(prepared.ids))
        waiting = self._scheduler.waiting + sum(len(task.choices) for task in self._parked)
        if waiting + request.n > max(room, request.n) and self._is_crowded_out(prepared):
            raise Overloaded(
                f"The model's queue is full ({waiting} sequences are waiting). Try again shortly.",
                retry_after_seconds=1.0,
            )
        if request.id in self._tasks:
            raise InvalidRequest(f"A request with the id {request.id!r} is already running.", param="id")
        left = self._context_length - len(prepared.ids)
        wanted = request.sampling.max_tokens
        choices = [
            Choice.create(index, request, self._prompts, prepared.ids, constraint, left if wanted is None else wanted)
            for index, constraint in enumerate(prepared.constraints)
        ]
        task = _Task(request, prepared.ids, prepared.prompt_text, choices, prepared.ticket)
        self._tasks[request.id] = task
        if task.ticket is None or task.ticket.adapter is not None:
            self._begin(task)
        else:
            self._parked.append(task)

    def cancel(self, request_id: str) -> None:
        """Forget the request and free its blocks; unknown ids are ignored."""
        task = self._tasks.pop(request_id, None)
        if task is not None:
            self._release(task)
            self._outcomes = [outcome for outcome in self._outcomes if outcome[0] != request_id]

    def register_adapter(self, name: str, folder: Path) -> None:
        """Serve the adapter in `folder` by that name from now on. From any thread."""
        self._adapters.register(name, folder)

    def remove_adapter(self, name: str) -> None:
        """Serve it no more; requests that have it keep it to their end. From any thread."""
        self._adapters.remove(name)

    def has_work(self) -> bool:
        """Whether any sequence waits or runs, or an outcome has not been handed out."""
        return bool(self._outcomes or self._scheduler.running or self._scheduler.waiting or self._parked)

    def step(self) -> list[tuple[str, Outcome]]:
        """One iteration: schedule, run, sample, tell."""
        self._begin_parked()
        plan = self._scheduler.schedule()
        if not plan and self._parked and not self._outcomes:
            self._adapters.wait(PARKED_SECONDS)
        if plan:
            self._start_admitted(plan)
            logits, rows = self._forward(plan)
            completed = [piece.completes for piece in plan]
            self._scheduler.computed(plan)
            self._read_prompts(plan, logits, rows)
            self._advance(
                [(piece.sequence, own[-1]) for piece, own, whole in zip(plan, rows, completed, strict=True) if whole],
                logits,
            )
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def capabilities(self) -> Capabilities:
        """What this model can do."""
        return Capabilities(
            generate=True,
            chat=self._prompts.template is not None,
            tools=self._prompts.template is not None,
            context_length=self._context_length,
            vocabulary=self._vocabulary,
            precision=self._precision,
        )

    def health(self) -> Health:
        """Counters of the scheduler now."""
        scheduler = self._scheduler
        return Health(
            state="ready",
            running=len(scheduler.running),
            waiting=scheduler.waiting,
            blocks_used=scheduler.blocks.total - scheduler.blocks.available,
            blocks_total=scheduler.blocks.total,
            blocks_cached=scheduler.blocks.kept,
            waiting_by_class=scheduler.queues.waiting_by_class(),
            preemptions=scheduler.preemptions,
            prefix_tokens=scheduler.found_tokens,
        )

    def _is_crowded_out(self, prepared: Prepared) -> bool:
        waiting = self._scheduler.queues.waiting_by_group()
        for task in self._parked:
            waiting[task.request.tenant, _serial(task.ticket)] += len(task.choices)
        who = prepared.request.tenant, _serial(prepared.ticket)
        return crowded_out(waiting, who, prepared.request.n, self._max_waiting)

    # --- adapters --------------------------------------------------------------------------------------------

    def _begin_parked(self) -> None:
        """Queue the requests whose adapter has come; end those whose adapter will not."""
        parked, self._parked = self._parked, []
        for task in parked:
            if task.ticket is None or not task.ticket.decided:
                self._parked += [task] if task.ticket is not None else []
            elif task.ticket.error is not None:
                self._fail(task, task.ticket.error)
            else:
                with self._contained(task):
                    self._begin(task)

    def _begin(self, task: _Task) -> None:
        """Queue the request's choices; where it wants its prompt's logprobs, the first one reads them for all."""
        if task.reads_prompt:
            task.prompt_logprobs.append(self._entry(Sampled(task.prompt_ids[0], None, ())))
            self._queue(task, task.choices[0], slice_limit=PROMPT_LOGPROB_ROWS)
        else:
            for choice in task.choices:
                self._queue(task, choice)

    # --- prepare ---------------------------------------------------------------------------------------------

    def _with_suggestions(self, request: GenerateRequest) -> GenerateRequest:
        """The request with what its caller left open filled in as the model's makers suggest."""
        fill = {name: self._suggested[name] for name in request.unset if name in self._suggested}
        if not fill:
            return request
        return msgspec.structs.replace(request, sampling=msgspec.structs.replace(request.sampling, **fill))

    def _prompt(self, request: GenerateRequest) -> tuple[list[int], str | None]:
        """The prompt's ids, known to the model and with room for an answer, and its text where it came as ids."""
        ids, text = self._prompts.encode(request)
        self._check_ids(request, ids)
        self._check_length(request, len(ids))
        return ids, text

    def _check_ids(self, request: GenerateRequest, ids: list[int]) -> None:
        for token in ids:
            if not 0 <= token < self._vocabulary:
                raise InvalidRequest(
                    f"The prompt has token {token}; this model's ids go from 0 to {self._vocabulary - 1}.",
                    param=_prompt_param(request),
                )

    def _check_length(self, request: GenerateRequest, prompt: int) -> None:
        param = _prompt_param(request)
        if prompt == 0:
            raise InvalidRequest("The prompt is empty: give at least one token.", param=param)
        limit, wanted = self._context_length, request.sampling.max_tokens
        if prompt + (wanted if wanted is not None else 1) <= limit:
            return
        asked = "" if wanted is None else f" and you asked for {wanted} more ({prompt + wanted} in all)"
        yours = "Your"  # what follows in Anthropic's words is what its clients look for: they ask again for less
        if prompt >= limit:
            yours = "The prompt is too long: your"
        elif wanted is not None:
            asked += f": input length and `max_tokens` exceed context limit: {prompt} + {wanted} > {limit}"
        raise ContextLengthExceeded(
            f"This model's maximum context length is {limit} tokens. {yours} {param} came to {prompt} tokens{asked}. "
            f"Shorten the {param}{'' if wanted is None else ' or max_tokens'}. ({ContextLengthExceeded.default_code})",
            param=param,
        )

    # --- step ------------------------------------------------------------------------------------------------

    def _forward(self, plan: list[Slice]) -> tuple[Array, list[range]]:
        """Logits for the positions that are needed, and for each slice which rows are its own."""
        wanted: list[Array] = []
        rows: list[range] = []
        begin = taken = 0
        for piece in plan:
            task, _ = piece.sequence.owner
            needed = piece.count if task.reads_prompt else int(piece.completes)
            wanted.append(np.arange(begin + piece.count - needed, begin + piece.count))
            rows.append(range(taken, taken + needed))
            begin, taken = begin + piece.count, taken + needed
        runs = [
            Run(s.tokens[s.computed : s.computed + piece.count], s.computed, s.blocks, s.owner[0].adapter, s.far)
            for piece in plan
            for s in (piece.sequence,)
        ]
        return self._runner.forward(runs, np.concatenate(wanted))[:, : self._vocabulary], rows

    def _read_prompts(self, plan: list[Slice], logits: Array, rows: list[range]) -> None:
        """Collect the logprobs of prompt tokens for `echo`: the row of position p tells of token p + 1."""
        for piece, own in zip(plan, rows, strict=True):
            task, choice = piece.sequence.owner
            if not task.reads_prompt or task.request.id not in self._tasks:
                continue
            known = len(task.prompt_logprobs)  # a sequence computed anew passes positions that were read before
            first = piece.sequence.computed - piece.count
            fresh = [(row, first + i + 1) for i, row in enumerate(own) if known <= first + i + 1 < len(task.prompt_ids)]
            if fresh:
                following = [task.prompt_ids[position] for _, position in fresh]
                read = prompt_logprobs(logits[[row for row, _ in fresh]], following, choice.top_logprobs)
                with self._contained(task):
                    task.prompt_logprobs += [self._entry(sampled) for sampled in read]
            if len(task.prompt_logprobs) == len(task.prompt_ids):
                self._start(task)
                for sibling in task.choices[1:]:
                    self._queue(task, sibling)

    def _advance(self, ready: list[tuple[Sequence, int]], logits: Array) -> None:
        """Choose the next token of every sequence that is computed to its end, and tell its choice."""
        masked = [(sequence, row, mask) for sequence, row in ready for mask in self._mask(sequence)]
        if not masked:
            return
        rows = [row for _, row, _ in masked]
        samplers = [sequence.owner[1].sampler for sequence, _, _ in masked]
        last = logits if rows == list(range(len(logits))) else logits[rows]  # a step of decodes needs no copy
        chosen = sample(last, samplers, [mask for _, _, mask in masked])
        for (sequence, _, _), result in zip(masked, chosen, strict=True):
            self._tell(sequence, result)

    def _mask(self, sequence: Sequence) -> Iterator[Array | None]:
        """The constraint's mask for the next token (None: all allowed); nothing when it fails or none is wanted."""
        task, choice = sequence.owner
        if task.request.id not in self._tasks:
            return  # it failed earlier in this very step: in a sibling's mask, or in its prompt's logprobs
        with self._contained(task):
            if choice.max_tokens == 0:  # only the prompt's logprobs were wanted
                self._told(task, choice, choice.end_without_tokens())
                return
            yield choice.mask()

    def _tell(self, sequence: Sequence, result: Sampled | EngineFailed) -> None:
        task, choice = sequence.owner
        if task.request.id not in self._tasks:
            return  # a sibling failed earlier in this very step
        with self._contained(task):
            if isinstance(result, EngineFailed):
                raise result
            delta = choice.accept(result)
            sequence.tokens.append(result.id)
            self._told(task, choice, delta)

    def _told(self, task: _Task, choice: Choice, delta: Delta) -> None:
        """Pass a choice's delta on; when it was the last one, free what it held."""
        self._outcomes.append((task.request.id, delta))
        if not choice.finished:
            return
        if choice.sequence is not None:
            self._scheduler.remove(choice.sequence)
        if all(choice.finished for choice in task.choices):
            del self._tasks[task.request.id]
            task.ticket = None
            self._outcomes.append((task.request.id, task.usage()))

    @contextmanager
    def _contained(self, task: _Task) -> Iterator[None]:
        """What goes wrong within one request ends that request, never its neighbours."""
        try:
            yield
        except InterlaceError as error:
            self._fail(task, error)
        except Exception as error:
            log.exception("request %s failed in the engine", task.request.id)
            self._fail(task, EngineFailed(f"The engine failed on this request ({type(error).__name__})."))

    def _fail(self, task: _Task, error: InterlaceError) -> None:
        del self._tasks[task.request.id]
        self._release(task)
        self._outcomes.append((task.request.id, error))

    def _release(self, task: _Task) -> None:
        task.ticket = None
        self._parked = [one for one in self._parked if one is not task]
        for choice in task.choices:
            if choice.sequence is not None:
                self._scheduler.remove(choice.sequence)

    def _queue(self, task: _Task, choice: Choice, slice_limit: int | None = None) -> None:
        if choice.max_tokens == 0 and not task.reads_prompt:
            if not task.started:
                self._start(task)
            self._told(task, choice, choice.end_without_tokens())
            return
        # By its serial: what another adapter of the same name computed before is none of its prefixes.
        request, weights = task.request, _serial(task.ticket)
        choice.sequence = Sequence(
            list(task.prompt_ids), (task, choice), slice_limit, request.tenant, weights, request.priority
        )
        self._scheduler.add(choice.sequence)

    def _start_admitted(self, plan: list[Slice]) -> None:
        """Requests whose turn has come are told so, and how much of their prompt was there already."""
        for piece in plan:
            task, _ = piece.sequence.owner
            if not task.started and not task.reads_prompt:
                task.cached_tokens = piece.sequence.found
                self._start(task)

    def _start(self, task: _Task) -> None:
        task.started = True
        started = Started(len(task.prompt_ids), task.cached_tokens, task.prompt_text, tuple(task.prompt_logprobs))
        self._outcomes.append((task.request.id, started))

    def _entry(self, sampled: Sampled | EngineFailed) -> TokenLogprob:
        if isinstance(sampled, EngineFailed):
            raise sampled
        return token_logprob(self._tokenizer, sampled)


def _serial(ticket: Ticket | None) -> str:
    """What tells the adapter of a ticket from all others; "": none."""
    return "" if ticket is None else str(ticket.registration.serial)


def _generation(request: GenerateRequest | EmbedRequest) -> GenerateRequest:
    if isinstance(request, EmbedRequest):
        raise InvalidRequest("This model generates text; it makes no embeddings and no scores.", param="model")
    return request


def _prompt_param(request: GenerateRequest) -> str:
    return "messages" if request.messages is not None else "prompt"
