"""Parts of the remote engine by themselves: event streams, counting, waiting, and the pool of connections."""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.engines.fields import ALL_KEPT, Refused, check_fields
from interlace.engines.remote.counting import (
    FETCHED_FILE_TOKENS,
    IMAGE_TOKENS,
    INPUT_TOKENS,
    MESSAGE_TOKENS,
    REQUEST_TOKENS,
    TOOLS_TOKENS,
    likely_chunk_tokens,
    likely_prompt_tokens,
    most_prompt_tokens,
)
from interlace.engines.remote.failures import Complaint, error_of, harmless, read_complaint
from interlace.engines.remote.sse import MOST_EVENT_BYTES, EventReader
from interlace.engines.types import (
    AudioPart,
    Capabilities,
    EmbedRequest,
    FilePart,
    GenerateRequest,
    ImagePart,
    Message,
    OutputRule,
    TextPart,
    Tool,
    ToolCall,
)
from interlace.errors import EngineFailed, EngineUnavailable, InvalidRequest
from tests.support.asking import chat, collect, remote, text_of
from tests.support.provider import Provider

# --- event streams -----------------------------------------------------------------------------------------------

LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(
    datas=st.lists(
        st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1), max_size=5
    ),
    ends=LINE_ENDS,
    cuts=st.lists(st.integers(0, 200), max_size=8),
)
def test_events_do_not_depend_on_how_they_are_cut(datas: list[str], ends: bytes, cuts: list[int]) -> None:
    """Wherever TCP cuts a stream, also between CR and LF, the same events come out."""
    stream = b"".join(b": x" + ends + b"data: " + data.encode() + ends + ends for data in datas)
    reader, found, at = EventReader(), [], 0
    for cut in [*sorted(cuts), len(stream)]:
        found += reader.feed(stream[at : max(cut, at)])
        at = max(cut, at)
    assert found + reader.end() == [data.encode() for data in datas]


def test_an_event_of_many_lines_is_bounded_too() -> None:
    """Short lines without end fill memory as a long one does."""
    reader, line = EventReader(), b"data: " + b"x" * 1000 + b"\n"
    for _ in range(MOST_EVENT_BYTES // 1000):
        reader.feed(line)
    with pytest.raises(EngineFailed):
        reader.feed(line)


# --- counting ----------------------------------------------------------------------------------------------------


def test_a_bound_counts_everything_that_a_model_may_read() -> None:
    """Adding a text anywhere raises the bound by at least its bytes."""
    plain = most_prompt_tokens(chat("hi"))
    word = "Grüße!"
    size = len(word.encode())
    more = [
        chat("hi" + word),
        chat(messages=(Message("user", "hi", name=word),)),
        chat(messages=(Message("user", "hi"), Message("user", word))),
        chat(messages=(Message("tool", "hi", tool_call_id=word),)),
        chat(messages=(Message("assistant", "hi", tool_calls=(ToolCall("", word, ""),)),)),
        chat(messages=(Message("assistant", "hi", tool_calls=(ToolCall("", "", word),)),)),
        chat("hi", tools=(Tool(word),)),
        chat("hi", tools=(Tool("", word),)),
        chat("hi", tools=(Tool("", "", {word: 1}),)),
        chat("hi", output=OutputRule("json_schema", word)),
    ]
    assert [most_prompt_tokens(request) >= plain + size for request in more] == [True] * len(more)


def test_a_bound_counts_what_is_no_text() -> None:
    """Pictures, sounds and files cost tokens too: a reservation without them would be exceeded by one picture."""
    plain = most_prompt_tokens(chat("hi"))
    for part, least in (
        (ImagePart("aW1n", "image/png"), IMAGE_TOKENS),
        (ImagePart(url="https://a.b/c.png"), IMAGE_TOKENS),
        (AudioPart("d2F2" * 1000, "wav"), 3000),
        (FilePart("ZmlsZQ==" * 1000, "application/pdf"), 6000),
        (FilePart(url="https://a.b/c.pdf"), FETCHED_FILE_TOKENS),
    ):
        request = chat(messages=(Message("user", (TextPart("hi"), part)),))
        assert most_prompt_tokens(request) >= plain + least
        assert likely_prompt_tokens(request) <= most_prompt_tokens(request)


def test_a_bound_leaves_room_for_what_a_template_writes() -> None:
    """Empty texts have marks around them too: of the request, of each message and call, and of tools."""
    empty = Message("user", "")
    assert most_prompt_tokens(chat(messages=(empty,))) == REQUEST_TOKENS + MESSAGE_TOKENS
    assert most_prompt_tokens(chat(messages=(empty,) * 5)) == REQUEST_TOKENS + 5 * MESSAGE_TOKENS
    called = Message("assistant", "", tool_calls=(ToolCall("", "", ""),) * 2)
    assert most_prompt_tokens(chat(messages=(called,))) >= REQUEST_TOKENS + 3 * MESSAGE_TOKENS
    assert most_prompt_tokens(chat("", tools=(Tool("a"),))) >= REQUEST_TOKENS + MESSAGE_TOKENS + TOOLS_TOKENS
    assert most_prompt_tokens(EmbedRequest(id="r", texts=("", "a"))) == 1 + 2 * INPUT_TOKENS


def test_what_is_kept_with_a_request_is_not_said_of_another_made_from_it() -> None:
    """Its length and that its fields are kept are worked out once: a copy with longer texts, or a field that is
    refused, would pass for the first one, and nobody would pay for it."""
    fields = dict(ALL_KEPT) | {"n": Refused("no.")}
    plain = chat("hi")
    short = most_prompt_tokens(plain)
    assert check_fields(plain, fields, {}) == check_fields(plain, fields, {}) == []
    longer = msgspec.structs.replace(plain, messages=(Message("user", "hi" * 1000),))
    assert most_prompt_tokens(longer) == short + 1998
    picky = msgspec.structs.replace(plain, n=2)
    with pytest.raises(InvalidRequest, match="'n'"):
        check_fields(picky, fields, {})
    with pytest.raises(InvalidRequest, match="messages"):
        check_fields(plain, dict(ALL_KEPT) | {"messages": Refused("no.")}, {})


def test_token_ids_are_counted_exactly() -> None:
    """A caller that sends ids has done the counting."""
    assert most_prompt_tokens(GenerateRequest(id="r", prompt_ids=(1, 2, 3))) == 3
    assert likely_prompt_tokens(GenerateRequest(id="r", prompt_ids=(1, 2, 3))) == 3
    assert likely_prompt_tokens(EmbedRequest(id="r", ids=((1, 2), (3,)))) == 3


@given(text=st.text(), n=st.integers(1, 3))
def test_what_is_likely_is_within_the_bound(text: str, n: int) -> None:
    """An estimate above the bound would be billed beyond its reservation."""
    for request in (
        chat(messages=(Message("user", text),) * n),
        GenerateRequest(id="r", prompt=text),
        EmbedRequest(id="r", texts=(text,) * n),
    ):
        assert 0 <= likely_prompt_tokens(request) <= most_prompt_tokens(request)
    assert likely_chunk_tokens(text) <= len(text.encode("utf-8", "surrogatepass"))
    assert bool(likely_chunk_tokens(text)) == bool(text)


# --- errors ------------------------------------------------------------------------------------------------------


@given(status=st.integers(100, 999), value=st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["error", "message", "type", "param", "code", "status", "detail"]) | st.text(), inner),
    max_leaves=10), after=st.none() | st.text() | st.floats().map(str))  # fmt: skip
def test_any_error_of_a_provider_is_one_of_ours(status: int, value: Any, after: str | None) -> None:
    """Whatever stands in an error, a caller gets a printable sentence and a sensible time."""
    error = error_of(status, read_complaint(value), after, lambda text: text, "messages")
    assert error.message
    assert error.message.isprintable()
    assert len(error.message) < 600
    assert error.retry_after_seconds is None or 0 <= error.retry_after_seconds <= 3600
    assert 400 <= error.status < 600


FLAT = {"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"detail": [FLAT]}, "body.seed: Extra inputs are not permitted"),
        (
            {"object": "error", "message": {"detail": [FLAT, {"msg": "x"}]}},
            "body.seed: Extra inputs are not permitted; x",
        ),
        ([{"error": {"code": 400, "message": "no", "status": "INVALID_ARGUMENT"}}], "no"),
        ({"error": "model not found"}, "model not found"),
    ],
)
def test_errors_of_other_shapes_are_read(body: Any, message: str) -> None:
    """FastAPI's, Mistral's, Google's and Ollama's: the caller hears what was wrong."""
    assert read_complaint(body).message == message


def test_a_date_to_come_back_at_is_understood() -> None:
    """HTTP allows Retry-After to be a date."""
    date = formatdate(time.time() + 60, usegmt=True)
    seconds = error_of(429, Complaint(), date, str, "messages").retry_after_seconds
    assert seconds is not None
    assert 55 < seconds < 61


def test_harmless_text_is_one_short_line() -> None:
    """Nothing in it moves a cursor or a log line."""
    assert harmless(" a\nb\x1b[0m\u202e ") == r"a\nb\x1b[0m\u202e"


# --- connections -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "stream"), [("instant:3", True), ("instant:3", False), ("late-end", True)])
async def test_connections_are_kept_and_used_again(provider: Provider, model: str, stream: bool) -> None:
    """Five answers after one another need one connection, streamed or whole, and when the end comes a moment late."""
    async with remote(provider.url, model, stream=stream) as engine:
        before = provider.connections
        for _ in range(5):
            await collect(engine, chat())
        assert provider.connections == before + 1


async def test_no_more_connections_than_were_allowed(provider: Provider) -> None:
    """Twenty callers on two connections take turns, and all are answered."""
    before = provider.connections
    async with remote(provider.url, "slow:3", connections=2) as engine:
        answers = await asyncio.gather(*(collect(engine, chat()) for _ in range(20)))
    assert {text_of(answer) for answer in answers} == {"w0 w1 w2 "}
    assert provider.connections == before + 2


@pytest.mark.parametrize("how", ["polite", "reset"])
async def test_a_connection_that_was_closed_meanwhile_is_made_anew(provider: Provider, how: str) -> None:
    """A server that drops kept connections costs nobody an error."""
    async with remote(provider.url, f"stale:{how}") as engine:
        for _ in range(3):
            assert text_of(await collect(engine, chat())) == "w0 "


async def test_large_bodies_go_out_whole(provider: Provider) -> None:
    """Two megabytes of prompt arrive as they were sent."""
    text = "wörd " * 400_000
    async with remote(provider.url, "instant:1") as engine:
        await collect(engine, chat(text))
    assert provider.seen[-1].body["messages"][0]["content"] == text


async def test_a_hundred_callers_at_once_are_kept_apart(provider: Provider) -> None:
    """Each gets an answer of the length it asked for."""
    async with remote(provider.url, "slow:100") as engine:
        answers = await asyncio.gather(*(collect(engine, chat(max_tokens=1 + i % 7)) for i in range(100)))
        assert [len(text_of(answer).split()) for answer in answers] == [1 + i % 7 for i in range(100)]
        assert engine.health().running == 0


@pytest.mark.parametrize("model", ["hang-first", "hang-head", "hang-mid"])
async def test_closing_ends_what_runs_and_what_comes(provider: Provider, model: str) -> None:
    """At the end of the process nothing waits for a provider; a later request hears that it is closed."""
    patience = {"first_token_seconds": 60, "between_tokens_seconds": 60}
    async with remote(provider.url, model, **patience) as engine, asyncio.timeout(20):
        running = asyncio.create_task(collect(engine, chat()))
        while not provider.bodies(model):
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        assert engine.health().state == "ready"
        await engine.close()
        await engine.close()
        with pytest.raises(EngineUnavailable, match="shutting down"):
            await running
        with pytest.raises(EngineUnavailable):
            await collect(engine, chat())
        assert engine.health().state == "closed"


async def test_capabilities_are_what_the_settings_say() -> None:
    """Nobody asks the provider; a model that cannot be stopped says so."""
    async with remote("http://127.0.0.1:9", "m", context_length=100) as engine:
        assert engine.capabilities() == Capabilities(generate=True, chat=True, tools=True, context_length=100)
    async with remote("http://127.0.0.1:9", "m", stream=False) as engine:
        assert not engine.capabilities().stoppable
    async with remote("http://127.0.0.1:9", "m", embeds=True, dimensions=3) as engine:
        assert engine.capabilities() == Capabilities(embed=True, dimensions=3)
