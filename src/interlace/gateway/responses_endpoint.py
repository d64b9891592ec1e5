"""`POST /v1/responses`: through the pipeline, with what came before, and kept for who comes back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass, field
from functools import partial

import msgspec
from starlette.types import Receive, Scope, Send

from interlace.config import LimitSettings
from interlace.deposits import Responses, Turn
from interlace.errors import EngineUnavailable, InterlaceError, InvalidRequest
from interlace.gateway.calls import Ask, Call, Done, Happening
from interlace.gateway.endpoint import Happenings, told_of_the_end
from interlace.gateway.http import (
    EVENT_STREAM,
    JSON,
    ClientGone,
    ClientWatch,
    Exchange,
    ReaderStuck,
    conversation_of,
    credential_of,
    read_json_body,
    send_whole,
    start_response,
    tags_of,
)
from interlace.gateway.pipeline import Pipeline
from interlace.gateway.responses import ask_of, read_body, references_of
from interlace.gateway.responses_body import Item, ResponsesBody
from interlace.gateway.responses_ids import read_item_id
from interlace.gateway.responses_rendering import ResponseRendering, shown
from interlace.gateway.responses_running import Background, Running
from interlace.gateway.wire import read_beside
from interlace.ledger import Outcome, Write

_log = logging.getLogger(__name__)
_ERROR = "The server had an error while processing your request. Try again."
_items = msgspec.json.Decoder(list[Item])
_encoder = msgspec.json.Encoder()


class _Output(msgspec.Struct, frozen=True):
    """Of a stored response, what its assistant said."""

    output: list[Item]


_output = msgspec.json.Decoder(_Output)


@dataclass
class Keeping:
    """What is written of one response, and when: nothing where `store` is false."""

    responses: Responses
    rendering: ResponseRendering
    project_id: str
    before: Sequence[Turn]
    created_at: int
    expires_at: int | None
    runner: str | None = None
    accepted: bool = False  # its turn may be written
    written: bool = False  # what became of it is

    def turn(self) -> Turn:
        """As it stands."""
        rendering, last = self.rendering, self.before[-1] if self.before else None
        body, given = rendering.kept(), _encoder.encode(rendering.input)
        return Turn(
            id=rendering.id,
            project_id=self.project_id,
            previous_id=last.id if last else None,
            turns=1 + (last.turns if last else 0),
            chain_bytes=len(body) + len(given) + (last.chain_bytes if last else 0),
            status=rendering.response.status,
            body=body,
            input=given,
            created_at=self.created_at,
            expires_at=self.expires_at,
            runner=self.runner if rendering.background else None,
        )

    def last_words(self, *, failed: bool) -> tuple[Write, ...]:
        """What is written once it is over. One that fails before its caller has heard of it leaves nothing."""
        rendering = self.rendering
        self.written = True
        if not rendering.store:
            return ()
        if rendering.background:
            return (self.turn().changed(),) if self.accepted else ()
        heard_of = rendering.stream and rendering.begun
        return () if failed and not heard_of else (self.turn().added(),)


@dataclass(frozen=True)
class ResponsesEndpoint:
    """An ASGI application."""

    pipeline: Pipeline
    responses: Responses
    limits: LimitSettings
    running: Running = field(default_factory=Running)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; raises what went wrong before the answer began."""
        exchange: Exchange = scope["interlace.exchange"]
        exchange.endpoint = "responses"
        caller = self.pipeline.ledger.authenticate(credential_of(scope))
        raw = await read_json_body(scope, receive, self.limits.body_bytes, self.limits.body_seconds)
        body = await read_beside(raw, partial(read_body, raw))
        exchange.model = body.model
        if body.store is not False:
            await self._check_room(caller.project.id)
        if body.previous_response_id is None and not references_of(body):
            ask, rendering = await read_beside(raw, partial(ask_of, body, exchange.id, (), {}))
            before: Sequence[Turn] = ()
        else:
            ask, rendering, before = await asyncio.to_thread(self._continued, body, exchange.id, caller.project.id)
        now = self.responses.now()
        until, runner = self.responses.expires_at(now), self.running.runner
        keeping = Keeping(self.responses, rendering, caller.project.id, before, now, until, runner)
        if rendering.background:
            await self._in_background(scope, receive, send, ask, keeping, caller.key.id)
        else:
            await self._while_waiting(scope, receive, send, ask, keeping)

    async def _check_room(self, project_id: str) -> None:
        if self.responses.knows_size(project_id):
            self.responses.check_room(project_id)
        else:
            await asyncio.to_thread(self.responses.check_room, project_id)

    # --- what came before ----------------------------------------------------------------------------------------

    def _continued(
        self, body: ResponsesBody, request_id: str, project_id: str
    ) -> tuple[Ask, ResponseRendering, Sequence[Turn]]:
        """The ask after all that came before it. Reads the database, and may be much to read."""
        before = self.responses.chain(project_id, body.previous_response_id) if body.previous_response_id else []
        history = [item for turn in before for item in items_of_turn(turn)]
        return *ask_of(body, request_id, history, self._referred(project_id, references_of(body))), before

    def _referred(self, project_id: str, ids: Sequence[str]) -> dict[str, Item]:
        """The items of those ids. Each response is read once, however many of its items are named."""
        named = [known.response for id in ids if (known := read_item_id(id)) is not None]
        items: dict[str | None, Item] = {}
        for turn in self.responses.several(project_id, named).values():
            items |= {item.id: item for item in (*_items.decode(turn.input), *_output.decode(turn.body).output)}
        for id in ids:
            if id not in items:
                raise InvalidRequest(
                    f"Item with id '{id[:200]}' not found. Only items of stored responses can be referred to; send the "
                    "item itself.",
                    param="input",
                    code="item_not_found",
                )
        return {id: items[id] for id in ids}

    # --- with a caller who waits ---------------------------------------------------------------------------------

    async def _while_waiting(self, scope: Scope, receive: Receive, send: Send, ask: Ask, keeping: Keeping) -> None:
        exchange: Exchange = scope["interlace.exchange"]
        rendering, client = keeping.rendering, ClientWatch(scope, receive)

        async def read() -> Ask:
            client.start()
            return ask

        call = self._call(scope, read, keeping, client)
        async with client:
            with told_of_the_end(client):
                async with aclosing(self.pipeline.answer(call)) as batches:
                    first = await anext(batches)  # whatever fails until here becomes a status of its own
                    try:
                        if rendering.stream:
                            await start_response(send, 200, EVENT_STREAM, (b"cache-control", b"no-cache"))
                            await self._send_events(send, rendering, first, batches, client, exchange)
                        else:
                            await self._send_whole(send, rendering, first, batches)
                    except ReaderStuck:
                        scope["interlace.abort"]()
                        raise

    def _call(
        self, scope: Scope, read: Callable[[], Awaitable[Ask]], keeping: Keeping, watched: ClientWatch | Background
    ) -> Call:
        exchange: Exchange = scope["interlace.exchange"]

        def gone() -> bool:
            return watched.gone if isinstance(watched, ClientWatch) else watched.cancelled

        async def accepted(passed: Ask) -> None:
            keeping.rendering.accept(passed.generate[0])
            if isinstance(watched, Background):
                await asyncio.to_thread(self.responses.put, keeping.turn().added())
                keeping.accepted = True
                keeping.rendering.start()
                watched.tell()
                watched.accepted.set_result(None)

        def beside(_: Outcome, failure: BaseException | None) -> tuple[Write, ...]:
            try:
                fault = watched.fault if isinstance(watched, Background) else None
                told = fault or (None if failure is None else _told(failure))
                keeping.rendering.finish(exchange.meter.usage(), told, cancelled=gone())
                return keeping.last_words(failed=failure is not None)
            except Exception:  # noqa: BLE001 - what is told of it stays away, what it used does not
                _log.exception("a response could not be stored", extra={"fields": {"id": exchange.id}})
                return ()

        return Call(
            id=exchange.id,
            endpoint=exchange.endpoint,
            credential=credential_of(scope),
            read=read,
            client_gone=gone,
            meter=exchange.meter,
            tags=tags_of(scope),
            tell_limits=exchange.tell_limits,
            tell_unused=exchange.tell_unused,
            tell_route=exchange.tell_route,
            streams=lambda: keeping.rendering.stream,
            conversation=conversation_of(scope) or (keeping.before[0].id if keeping.before else keeping.rendering.id),
            accepted=accepted,
            beside=beside,
        )

    async def _send_whole(
        self, send: Send, rendering: ResponseRendering, batch: list[Happening], batches: Happenings
    ) -> None:
        while not isinstance(batch[0], Done):
            rendering.take(batch)
            batch = await anext(batches)
        await self._patiently(send_whole(send, 200, JSON, rendering.whole(batch[0])))

    async def _send_events(
        self,
        send: Send,
        rendering: ResponseRendering,
        batch: list[Happening],
        batches: Happenings,
        client: ClientWatch,
        exchange: Exchange,
    ) -> None:
        """Everything that waits goes out as one write. After the first byte, an error can only be an event."""
        try:
            with told_of_the_end(client):
                while not isinstance(batch[0], Done):
                    if data := rendering.chunks(batch):
                        await self._write(send, data)
                    batch = await anext(batches)
                end = rendering.last_chunks(batch[0])
        except InterlaceError as error:
            fields = {"error": type(error).__name__, "code": error.code}  # its message may quote what the model said
            _log.warning("a stream ended in an error", extra={"fields": fields})
            end = rendering.failed(error, exchange.meter.usage())
        except ClientGone:
            raise
        except Exception as error:  # noqa: BLE001 - the status has left already: logged, and told as an event
            _log.exception("a stream ended in a bug of ours")
            end = rendering.failed(_told(error), exchange.meter.usage())
        await self._write(send, end, more=False)

    async def _write(self, send: Send, data: bytes, *, more: bool = True) -> None:
        await self._patiently(send({"type": "http.response.body", "body": data, "more_body": more}))

    async def _patiently(self, sending: Awaitable[None]) -> None:
        """A reader that takes nothing for so long is dropped."""
        try:
            async with asyncio.timeout(self.limits.reader_seconds):
                await sending
        except TimeoutError:
            raise ReaderStuck from None

    # --- in the background ---------------------------------------------------------------------------------------

    async def _in_background(
        self, scope: Scope, receive: Receive, send: Send, ask: Ask, keeping: Keeping, key_id: str
    ) -> None:
        """The answer is told once the response is accepted and stored as such; the work goes on whoever stays."""
        rendering = keeping.rendering
        accepted = asyncio.get_running_loop().create_future()
        one = Background(keeping.project_id, key_id, rendering, accepted, self.limits.background_bytes)

        async def read() -> Ask:
            return ask

        call = self._call(scope, read, keeping, one)
        self.running.add(one, self.limits.background_responses)
        hold = scope.get("interlace.hold", nullcontext)  # a reload must not close the engine under it
        one.task = asyncio.create_task(self._work(one, call, keeping, hold))
        await asyncio.shield(one.accepted)
        if rendering.stream:
            await self.send_followed(scope, receive, send, one, after=-1)
            return
        await send_whole(send, 200, JSON, shown(rendering.kept(), seals=rendering.seals))

    async def send_followed(self, scope: Scope, receive: Receive, send: Send, one: Background, *, after: int) -> None:
        """The events of a response that runs, after that number."""
        client = ClientWatch(scope, receive)
        async with client, aclosing(one.follow(after)) as events:
            client.start()
            await start_response(send, 200, EVENT_STREAM, (b"cache-control", b"no-cache"))
            try:
                async for data in events:
                    await self._write(send, data)
                await self._write(send, b"", more=False)
            except ReaderStuck:
                scope["interlace.abort"]()
                raise

    async def _work(
        self, one: Background, call: Call, keeping: Keeping, hold: Callable[[], AbstractContextManager[object]]
    ) -> None:
        rendering = one.rendering
        failure: BaseException | None = None
        try:
            with hold():
                await self._run(one, call)
        except asyncio.CancelledError as error:  # by its caller, or by a server that shuts down
            failure = error
        except InterlaceError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - nobody waits for it: logged, and told to who comes back
            _log.exception("a background response ended in a bug of ours")
            failure = error
        try:
            rendering.finish(call.meter.usage(), None if failure is None else _told(failure), cancelled=one.cancelled)
            if keeping.accepted and not keeping.written:
                for write in keeping.last_words(failed=True):
                    await asyncio.to_thread(self.responses.put, write)
        except Exception:  # noqa: BLE001 - nobody waits for it
            _log.exception("a background response could not be stored")
        finally:
            if rendering.stream:
                rendering.tell_end()
            one.over = True
            one.tell()
            self.running.remove(one)
            if not one.accepted.done():
                one.accepted.set_exception(_told(failure or InterlaceError(_ERROR)))
            fields = {"id": rendering.id, "status": rendering.response.status}
            _log.info("a background response is over", extra={"fields": fields})

    async def _run(self, one: Background, call: Call) -> None:
        async with aclosing(self.pipeline.answer(call)) as batches:
            async for batch in batches:
                one.take(batch)


def items_of_turn(turn: Turn) -> list[Item]:
    """What a stored response adds to a conversation: its input, and what was said. Calls that were cut off are left
    out: nobody can have made them."""
    said = _output.decode(turn.body).output
    return [*_items.decode(turn.input), *(item for item in said if not _cut_off(item))]


def _cut_off(item: Item) -> bool:
    return item.__struct_config__.tag == "function_call" and getattr(item, "status", None) != "completed"


def _told(failure: BaseException) -> InterlaceError:
    """A failure as a caller may hear of it."""
    if isinstance(failure, InterlaceError):
        return failure
    if isinstance(failure, asyncio.CancelledError | GeneratorExit):
        return EngineUnavailable("The server shut down before the response was complete. Ask again.")
    return InterlaceError(_ERROR)
