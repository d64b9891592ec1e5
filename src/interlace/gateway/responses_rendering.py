"""`/v1/responses`: one response, rendered: whole, as the stream of its events, and as it is kept.

    created → (queued) → in_progress → items … → completed | incomplete | failed

Every event has a number; what is told of the response is told as guards let it pass.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from interlace.engines.types import Delta, FinishReason, GenerateRequest, Thought, Tool, ToolCallDelta, Usage
from interlace.errors import InterlaceError
from interlace.gateway.calls import Done, Happening, PartStarted
from interlace.gateway.responses_answer import (
    TIERS,
    IncompleteDetails,
    OutputApplyPatchCall,
    OutputCall,
    OutputCustomCall,
    OutputLocalShellCall,
    OutputMessage,
    OutputReasoning,
    OutputRefusal,
    OutputShellCall,
    Response,
    Status,
    response_error,
    response_usage,
)
from interlace.gateway.responses_body import ResponsesBody
from interlace.gateway.responses_ids import read_item_id
from interlace.gateway.responses_items import items_of
from interlace.gateway.responses_output import Output

SEALS = "reasoning.encrypted_content"

_encoder = msgspec.json.Encoder()


class ResponseRendering:
    """One response. `given`: how many turns at the end of the request are this response's own input."""

    def __init__(self, response: Response, *, given: int = 0, stream: bool, store: bool, seals: bool) -> None:
        self.id = response.id
        self.stream = stream
        self.store = store
        self.seals = seals
        self.response = response
        self.input: list[dict[str, Any]] = []
        self.begun = False
        self._given = given
        self._number = 0
        self._events: list[bytes] = []
        self.output = Output(response.id, self._tell if stream else _untold, show_seals=seals)

    @classmethod
    def of(cls, id: str, body: ResponsesBody, *, given: int) -> ResponseRendering:
        """Of a request."""
        seals = SEALS in (body.include or ())
        return cls(
            _as_asked(id, body), given=given, stream=bool(body.stream), store=body.store is not False, seals=seals
        )

    @property
    def background(self) -> bool:
        """Whether it runs on without its caller."""
        return self.response.background

    @property
    def ended(self) -> bool:
        """Whether `finish` has been."""
        return self.response.status not in {"queued", "in_progress"}

    def accept(self, request: GenerateRequest) -> None:
        """What is asked, as guards let it pass."""
        messages = request.messages or ()
        instructions = messages[0].text if self.response.instructions else None
        tools = [_as_offered(tool) for tool in request.tools]
        self.response = msgspec.structs.replace(self.response, instructions=instructions, tools=tools)
        self.input = items_of(messages[len(messages) - self._given :], self.id)

    def start(self) -> None:
        """The response is there."""
        self.begun = True
        if not self.stream:
            return
        self._tell_response("response.created")
        if self.background:
            self._tell_response("response.queued")

    def finish(self, usage: Usage, failure: InterlaceError | None, *, cancelled: bool = False) -> None:
        """What became of it; a second time changes nothing."""
        if self.ended:
            return
        status: Status
        incomplete = error = completed_at = None
        if failure is None:
            reasons = {"length": "max_output_tokens", "content_filter": "content_filter"}
            reason: Any = reasons.get(self.output.finish or "")
            status, incomplete = ("incomplete", IncompleteDetails(reason)) if reason else ("completed", None)
            completed_at = int(time.time()) if status == "completed" else None
        else:
            self.output.interrupt()
            status, error = "cancelled", None
            if not cancelled:
                status, error = "failed", response_error(failure)
        tier = usage.service_tier if usage.service_tier in TIERS else "default"
        self.response = msgspec.structs.replace(
            self.response,
            status=status,
            output=self.output.items(),
            error=error,
            incomplete_details=incomplete,
            completed_at=completed_at,
            usage=response_usage(usage) if failure is None or self.begun else None,
            service_tier=tier,
        )

    # --- whole ---------------------------------------------------------------------------------------------------

    def take(self, batch: Sequence[Happening]) -> None:
        """Collect; streaming, what is told of it waits in `events`."""
        for happening in batch:
            if isinstance(happening, Delta):
                self.output.take(happening)
            elif isinstance(happening, PartStarted):
                if not self.begun:
                    self.start()
                self.progress()

    def whole(self, done: Done) -> bytes:
        """The response."""
        self.finish(done.usage, None)
        return shown(self.kept(), seals=self.seals)

    def kept(self) -> bytes:
        """The response as it is kept: JSON, with its seals."""
        if self.ended:
            return _encoder.encode(self.response)
        return _encoder.encode(msgspec.structs.replace(self.response, output=self.output.items()))

    # --- in events -----------------------------------------------------------------------------------------------

    def chunks(self, batch: Sequence[Happening]) -> bytes:
        """The events of a batch."""
        self.take(batch)
        return self.told()

    def last_chunks(self, done: Done) -> bytes:
        """What ends the stream."""
        self.finish(done.usage, None)
        self.tell_end()
        return self.told()

    def failed(self, error: InterlaceError, usage: Usage) -> bytes:
        """What ends a stream that fails."""
        self.finish(usage, error)
        self.tell_end()
        return self.told()

    def resume(self, response: Response, number: int) -> None:
        """Tell the end of a response, as the event of that number."""
        self.response, self._number = response, number
        self.tell_end()

    def tell_end(self) -> None:
        """The last events: what went wrong, and how the response stands."""
        if (error := self.response.error) is not None:
            self._write("error", {"code": error.code, "message": error.message, "param": None})
        kind = {"cancelled": "incomplete"}.get(self.response.status, self.response.status)
        self._tell_response(f"response.{kind}")

    def told(self) -> bytes:
        """The events since the last time."""
        return b"".join(self.events())

    def events(self) -> list[bytes]:
        """The same, one by one."""
        events, self._events = self._events, []
        return events

    def progress(self) -> None:
        """It runs."""
        self.response = msgspec.structs.replace(self.response, status="in_progress")
        if self.stream:
            self._tell_response("response.in_progress")

    def _tell_response(self, kind: str) -> None:
        self._write(kind, {"response": msgspec.Raw(shown(_encoder.encode(self.response), seals=self.seals))})

    def _tell(self, kind: str, fields: dict[str, Any]) -> None:
        self._write(f"response.{kind}", fields)

    def _write(self, kind: str, fields: dict[str, Any]) -> None:
        data = _encoder.encode({"type": kind, "sequence_number": self._number, **fields})
        self._events.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), data))
        self._number += 1


def replayed(kept: bytes, *, seals: bool, after: int | None = None) -> list[bytes]:
    """The events of a response that has ended, each of its texts in one piece. Whoever has seen those up to `after`, in
    other pieces, gets the last one, which holds everything."""
    response = msgspec.json.decode(kept, type=Response)
    begun = msgspec.structs.replace(
        response, status="in_progress", output=[], error=None, incomplete_details=None, completed_at=None, usage=None
    )
    rendering = ResponseRendering(begun, stream=True, store=False, seals=seals)
    if after is not None:
        rendering.resume(response, after + 1)
        return rendering.events()
    rendering.start()
    rendering.progress()
    for delta in _deltas(response):
        rendering.output.take(delta)
    rendering.response = response
    rendering.tell_end()
    return rendering.events()


def _deltas(response: Response) -> Iterator[Delta]:
    """What the engine could have said."""
    for number, item in enumerate(response.output):
        match item:
            case OutputMessage():
                for part in item.content:
                    refused = isinstance(part, OutputRefusal)
                    yield Delta(text=part.refusal if isinstance(part, OutputRefusal) else part.text, refused=refused)
            case OutputCall():
                yield Delta(tool_calls=(ToolCallDelta(number, item.call_id, item.name, item.arguments),))
            case OutputCustomCall():
                yield Delta(tool_calls=(ToolCallDelta(number, item.call_id, item.name, item.input, kind="custom"),))
            case OutputLocalShellCall() | OutputShellCall() | OutputApplyPatchCall():
                said = msgspec.to_builtins(item)
                kind = said.pop("type")
                for name in ("id", "call_id", "status"):
                    del said[name]
                arguments = _encoder.encode(said).decode()
                yield Delta(tool_calls=(ToolCallDelta(number, item.call_id, kind, arguments, kind=kind),))
            case OutputReasoning():
                yield from _thoughts(item)
    reasons: dict[str, FinishReason] = {"max_output_tokens": "length", "content_filter": "content_filter"}
    if response.incomplete_details is not None:
        yield Delta(finish_reason=reasons[response.incomplete_details.reason])
    elif response.status == "completed":
        yield Delta(finish_reason="stop")


def _thoughts(item: OutputReasoning) -> Iterator[Delta]:
    known = read_item_id(item.id)
    id = known.provider if known else ""
    yield Delta(thought=Thought(id=id))
    for part in item.content or ():
        yield Delta(thought=Thought(text=part.text, id=id))
    for summary in item.summary:
        yield Delta(thought=Thought(text=summary.text, summary=True, id=id))
        yield Delta(thought=Thought(summary=True, id=id))
    if item.encrypted_content:
        yield Delta(thought=Thought(signature=item.encrypted_content, id=id))


def shown(kept: bytes, *, seals: bool) -> bytes:
    """A response as it is told; sealed thoughts only where they were asked for."""
    if seals or b'"encrypted_content"' not in kept:
        return kept
    body = msgspec.json.decode(kept)
    for item in body["output"]:
        item.pop("encrypted_content", None)
    return _encoder.encode(body)


def _as_asked(id: str, body: ResponsesBody) -> Response:
    text, reasoning = body.text, body.reasoning
    wanted = None if text is None else text.format
    choice = "auto" if body.tool_choice is None else body.tool_choice
    return Response(
        id=id,
        created_at=int(time.time()),
        status="queued" if body.background else "in_progress",
        model=body.model,
        background=bool(body.background),
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        max_tool_calls=body.max_tool_calls,
        metadata=body.metadata or {},
        parallel_tool_calls=body.parallel_tool_calls is not False,
        previous_response_id=body.previous_response_id,
        prompt_cache_key=body.prompt_cache_key,
        prompt_cache_retention=body.prompt_cache_retention and body.prompt_cache_retention.replace("-", "_"),
        reasoning={
            "effort": reasoning.effort if reasoning else None,
            **({"context": reasoning.context} if reasoning and reasoning.context else {}),
            "summary": (reasoning.summary or reasoning.generate_summary) if reasoning else None,
        },
        safety_identifier=body.safety_identifier,
        service_tier=body.service_tier or "auto",
        temperature=body.temperature,
        text={
            "format": {"type": "text"} if wanted is None else msgspec.to_builtins(wanted),
            "verbosity": "medium" if text is None or text.verbosity is None else text.verbosity,
        },
        tool_choice=msgspec.to_builtins(choice),
        top_logprobs=body.top_logprobs or 0,
        top_p=body.top_p,
        user=body.user,
    )


def _as_offered(tool: Tool) -> dict[str, Any]:
    if not tool.kind:
        said = {"name": tool.name, "description": tool.description or None, "parameters": tool.parameters}
        return {"type": "function", **said, "strict": tool.strict}
    if tool.kind != "custom":
        return {"type": tool.kind, **tool.native}
    described = {"description": tool.description} if tool.description else {}
    return {"type": "custom", "name": tool.name, **described, **tool.native}


def _untold(kind: str, fields: dict[str, Any]) -> None:
    """Where nobody listens."""
