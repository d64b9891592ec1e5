"""What goes wrong at providers, and what a caller hears of it."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import ssl
import subprocess
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from interlace.engines.types import Delta, EmbedRequest, Started
from interlace.errors import (
    ContentFiltered,
    ContextLengthExceeded,
    EngineFailed,
    EngineUnavailable,
    InterlaceError,
    InvalidRequest,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    ProviderLimited,
)
from tests.support.asking import KEY, chat, collect, remote, text_of
from tests.support.provider import Provider, running_provider

# model → the error, words of its message, and how many words of an answer came before it
FAULTS: dict[str, tuple[type[InterlaceError], str, int]] = {
    "cut": (EngineFailed, "ended the connection", 2),
    "cut:first": (EngineFailed, "ended the connection", 0),
    "quiet-end": (EngineFailed, "before it was complete", 1),
    "half-json": (EngineFailed, "no answer", 1),
    "garbage:nonsense": (EngineFailed, "no answer", 0),
    "garbage:[1, 2]": (EngineFailed, "no answer", 0),
    'garbage:{"choices": [{"index": "a"}]}': (EngineFailed, "no answer", 0),
    'garbage:{"choices": [{"index": -1}]}': (EngineFailed, "more often than asked", 0),
    "garbage:{}": (EngineFailed, "before it was complete", 0),
    "garbage:[[[[" + "[" * 5000: (EngineFailed, "no answer", 0),
    "no-http": (EngineFailed, "does not speak HTTP", 0),
    "bad-chunk": (EngineFailed, "ended the connection", 1),
    "bad-chunk:head": (EngineFailed, "does not speak HTTP", 0),
    "gzip-anyway": (EngineFailed, "before it was complete", 0),
    "html": (EngineFailed, "neither events nor JSON", 0),
    "long-line": (EngineFailed, "endless line", 1),
    "fewer": (EngineFailed, "before it was complete", 1),
    "fewer:more": (EngineFailed, "more often than asked", 0),
    "tools:nameless": (EngineFailed, "without naming it", 0),
    "redirect:302": (EngineFailed, "redirect", 0),
    "redirect:307": (EngineFailed, "redirect", 0),
    "status:400": (InvalidRequest, "Refused with 400", 0),
    "status:422": (InvalidRequest, "Refused with 422", 0),
    "status:404": (NotFound, "does not have it: Refused with 404", 0),
    "status:413": (PayloadTooLarge, "Refused with 413", 0),
    "status:401": (EngineFailed, "does not accept this gateway's account", 0),
    "status:403": (EngineFailed, "does not accept this gateway's account", 0),
    "status:402": (EngineFailed, "does not accept this gateway's account", 0),
    "status:429": (ProviderLimited, "rate limit", 0),
    "status:500": (EngineFailed, "HTTP 500", 0),
    "status:503": (EngineUnavailable, "not available", 0),
    "status:529": (EngineUnavailable, "not available", 0),
    "status:418": (EngineFailed, "HTTP 418", 0),
    "status:201": (EngineFailed, "HTTP 201", 0),
    "refuse:context": (ContextLengthExceeded, "maximum context length is 8", 0),
    "refuse:filter": (ContentFiltered, "was filtered", 0),
    "error-inside:json": (ContextLengthExceeded, "maximum context length", 0),
    "error-inside:first": (ContextLengthExceeded, "maximum context length", 0),
    "error-inside:mid": (EngineFailed, "HTTP 500", 1),
    "error-inside:text": (EngineFailed, "HTTP 500", 0),
    "error-inside:limit": (ProviderLimited, "rate limit", 0),
    "error-inside:flat": (InvalidRequest, "too long", 0),
}


@pytest.mark.parametrize("model", FAULTS, ids=lambda model: model[:40])
async def test_a_fault_is_a_clean_error(provider: Provider, model: str) -> None:
    """The error's class, its words, and what was said before it; then the same engine answers the next caller."""
    kind, words, before = FAULTS[model]
    n = 2 if model == "fewer" else 1
    async with remote(provider.url, model) as engine:
        events: list[Any] = []
        with pytest.raises(InterlaceError) as caught:
            await _collect_into(events, engine.generate(chat(n=n)))
        assert type(caught.value) is kind
        assert words in caught.value.message
        assert len(text_of(events).split()) == before
        assert bool(events) == bool(before)  # `Started` comes with the first chunk, so early errors have a status
        assert KEY not in f"{caught.value!r} {caught.value.message} {caught.value.__cause__}"
        assert engine.health().state == "ready"
        assert engine.health().running == 0
    assert caught.value.__cause__ is None


async def test_after_any_fault_the_next_caller_is_answered() -> None:
    """One provider error locks nobody out: the same engine, the same connections, the next request."""
    with running_provider() as provider:
        async with remote(provider.url, "instant:2") as engine:
            for model in FAULTS:
                engine._wire.settings = dataclasses.replace(engine._wire.settings, model=model)
                with pytest.raises(InterlaceError):
                    await collect(engine, chat(n=2 if model == "fewer" else 1))
                engine._wire.settings = dataclasses.replace(engine._wire.settings, model="instant:2")
                assert text_of(await collect(engine, chat())) == "w0 w1 "


async def test_a_rate_limit_says_when_to_come_back(provider: Provider) -> None:
    """Retry-After of the provider reaches the caller; the name of the operator's organisation does not."""
    async with remote(provider.url, "status:429") as engine:
        with pytest.raises(Overloaded) as caught:
            await collect(engine, chat())
    assert caught.value.retry_after_seconds == 7
    assert "org-123" not in caught.value.message


async def test_what_a_provider_writes_cannot_write_on_a_terminal(provider: Provider) -> None:
    """A message of control characters without end comes out printable and short; odd `param` and `code` do not."""
    async with remote(provider.url, "refuse:controls") as engine:
        with pytest.raises(InvalidRequest) as caught:
            await collect(engine, chat())
    assert caught.value.message.isprintable()
    assert caught.value.message.startswith(r"\x1b[31mred\r\n\x00xxx")
    assert len(caught.value.message) < 600
    assert (caught.value.param, caught.value.code) == (None, None)


async def test_where_the_callers_fault_is_it_is_named(provider: Provider) -> None:
    """`param` and `code` of a refusal reach the caller."""
    async with remote(provider.url, "status:400") as engine:
        with pytest.raises(InvalidRequest) as caught:
            await collect(engine, chat())
    assert (caught.value.param, caught.value.code) == ("temperature", "odd")


@pytest.mark.parametrize("model", ["cut:finished", "cut:usage", "quiet-end:finished", "hang-end"])
async def test_a_finished_answer_whose_usage_never_comes_is_an_answer(provider: Provider, model: str) -> None:
    """Once every choice has ended nothing but the count is missing, and that is ours, marked."""
    async with remote(provider.url, model, between_tokens_seconds=0.1) as engine:
        events = await collect(engine, chat())
    assert text_of(events).startswith("one ")
    assert events[-1].estimated  # type: ignore[union-attr]


SLOW = {
    "hang-first": "did not begin to answer within 0.15 seconds",
    "hang-head": "did not begin to answer within 0.15 seconds",
    "drip": "did not begin to answer within 0.15 seconds",
    "hang-mid": "said nothing for 0.2 seconds",
    "slow:10000": "did not finish its answer within 0.4 seconds",
}


@pytest.mark.parametrize("model", SLOW)
async def test_each_wait_has_its_end(provider: Provider, model: str) -> None:
    """Before the first token, between tokens and in all: comments that drip are no tokens. The connection is closed."""
    waits = {"first_token_seconds": 0.15, "between_tokens_seconds": 0.2, "total_seconds": 0.4}
    async with remote(provider.url, model, **waits) as engine:
        with pytest.raises(EngineFailed, match=SLOW[model]):
            await collect(engine, chat())
        await _until(lambda: model in provider.cancelled)


async def test_without_streaming_only_the_whole_counts(provider: Provider) -> None:
    """A server that answers whole sends its first byte last, so only the total bounds it."""
    waits = {"first_token_seconds": 0.01, "between_tokens_seconds": 0.01, "total_seconds": 0.2}
    async with remote(provider.url, "hang-first", stream=False, **waits) as engine:
        with pytest.raises(EngineFailed, match=r"within 0\.2 seconds"):
            await collect(engine, chat())
        with pytest.raises(EngineFailed, match=r"within 0\.2 seconds"):
            await engine.embed(EmbedRequest(id="r", texts=("a",)))


@pytest.mark.parametrize("model", ["hang-first", "hang-head", "hang-mid", "slow:10000"])
async def test_a_cancelled_answer_ends_at_the_provider(provider: Provider, model: str) -> None:
    """Wherever the caller leaves, the provider sees its connection closed, and nothing runs on."""
    provider.cancelled.clear()
    provider.seen.clear()
    async with remote(provider.url, model) as engine:
        stream = engine.generate(chat())
        if model.startswith("hang-") and model != "hang-mid":
            waiting = asyncio.create_task(anext(stream))
            await _until(lambda: provider.bodies(model))
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        else:
            assert isinstance(await anext(stream), Started)
            assert isinstance(await anext(stream), Delta)
        await stream.aclose()
        assert engine.health().running == 0
        await _until(lambda: model in provider.cancelled)


async def test_nobody_there_is_unavailable() -> None:
    """A refused connection is a 503 that names no address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with remote(f"http://127.0.0.1:{port}/v1", "m") as engine:
        with pytest.raises(EngineUnavailable, match="cannot be reached") as caught:
            await collect(engine, chat())
        assert str(port) not in caught.value.message
        with pytest.raises(EngineUnavailable):
            await engine.embed(EmbedRequest(id="r", texts=("a",)))


async def test_one_who_never_accepts_is_given_up() -> None:
    """A full queue of a listening socket drops connections without a word: `connect_seconds` ends the wait."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        address = deaf.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        async with remote(f"http://127.0.0.1:{address[1]}/v1", "m", connect_seconds=0.2) as engine:
            with pytest.raises(EngineUnavailable, match="does not accept connections"):
                await collect(engine, chat())
        for filler in fillers:
            filler.close()


async def test_a_server_that_cannot_prove_who_it_is_hears_nothing(tmp_path: Path) -> None:
    """A certificate that nobody vouches for ends the connection before the key leaves."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", "key.pem", "-out", "cert.pem"], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1000))
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        async with remote(f"https://127.0.0.1:{port}/v1", "m") as engine:
            with pytest.raises(EngineUnavailable, match="prove who it is"):
                await collect(engine, chat())
    assert b"".join(heard) == b""


async def test_redirects_are_not_followed(provider: Provider) -> None:
    """Neither prompt nor key goes where a provider points."""
    async with remote(provider.url, "redirect:307") as engine:
        with pytest.raises(EngineFailed):
            await collect(engine, chat())
    assert provider.seen[-1].path == "/v1/chat/completions"


async def test_proxies_of_the_environment_are_not_used(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts go to the configured address, whatever a shell was told."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with remote(provider.url, "instant:1") as engine:
        assert text_of(await collect(engine, chat())) == "w0 "


async def _collect_into(events: list[Any], stream: AsyncGenerator[Any, None]) -> None:
    async for event in stream:
        events.append(event)


async def _until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)
