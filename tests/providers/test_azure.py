"""The engine `azure` against Azure's addresses, keys and tokens on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from interlace.config import ModelSettings
from interlace.engines.remote import RemoteEngine
from interlace.engines.remote.providers.azure import AzureWire, EntraTokens
from interlace.engines.remote.secret import Secret
from interlace.engines.remote.wire import Fetched, Outgoing
from interlace.errors import ConfigError, ContentFiltered, EngineFailed, NotFound
from tests.providers.servers.openai import (
    AZURE_KEY,
    CLIENT,
    CLIENT_SECRET,
    GREETING,
    TENANT,
    VERSION,
    OpenAI,
    running_openai,
)
from tests.support.asking import chat, collect, finishes, text_of

ENV = {"AZURE_OPENAI_API_KEY": AZURE_KEY, "SECRET": CLIENT_SECRET, "WRONG": "nonsense"}
ENTRA = {"entra_client": CLIENT, "entra_secret": "${SECRET}", "entra_tenant": TENANT}


@pytest.fixture
def server() -> Iterator[OpenAI]:
    """The server."""
    with running_openai() as running:
        yield running


@asynccontextmanager
async def engine(server: OpenAI, model: str = "text", **more: Any) -> AsyncGenerator[RemoteEngine]:
    """A started engine; what Entra is asked goes to the same server."""
    if "entra_client" in more:
        more["token_url"] = f"{server.url}/{TENANT}/oauth2/v2.0/token"
    settings = ModelSettings(name="far", engine="azure", base_url=server.url, model=model, **more)
    made = RemoteEngine(settings, ENV)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"api_version": VERSION}, "/openai/deployments/text/chat/completions"),
        ({}, "/openai/v1/chat/completions"),
        ({"api_version": "preview"}, "/openai/v1/chat/completions"),
        ({"api": "responses"}, "/openai/v1/responses"),
    ],
)
async def test_both_addresses_are_found(server: OpenAI, settings: dict[str, Any], path: str) -> None:
    """A dated version asks a deployment, none asks for a model; the key has a header of its own."""
    model = "thinks" if "api" in settings else "text"
    async with engine(server, model, **settings) as made:
        assert text_of(await collect(made, chat())) == ("Four." if "api" in settings else GREETING)
    assert server.seen[-1][0] == path


@pytest.mark.parametrize("tail", ["", "/openai", "/openai/v1"])
async def test_an_address_may_be_written_out(server: OpenAI, tail: str) -> None:
    """Azure's portal shows it in several lengths."""
    async with engine(server) as made:
        wire = made._wire
        assert isinstance(wire, AzureWire)
        settings = ModelSettings(name="a", engine="azure", model="m", base_url=server.url + tail)
        sent = await AzureWire(settings, None, None).outgoing("/x", {}, "")
    assert sent.url == f"{server.url}/openai/v1/x"


async def test_a_token_is_fetched_once_and_ahead_of_its_end(server: OpenAI) -> None:
    """Many callers wait for one token; one that ends soon is followed by another before it does."""
    async with engine(server, **ENTRA) as made:
        answers = await asyncio.gather(*(collect(made, chat()) for _ in range(5)))
        assert {text_of(answer) for answer in answers} == {GREETING}
        assert len(server.tokens) == 1
        await collect(made, chat())
        assert len(server.tokens) == 1
    server.life = 0
    async with engine(server, **ENTRA) as made:
        await collect(made, chat())
        before = len(server.tokens)
        await collect(made, chat())
    assert len(server.tokens) >= before


async def test_a_token_that_was_revoked_is_fetched_anew(server: OpenAI) -> None:
    """One request hears of it; the next is answered."""
    async with engine(server, **ENTRA) as made:
        await collect(made, chat())
        server.revoked.add(server.tokens[-1])
        with pytest.raises(EngineFailed, match="does not accept this gateway's account"):
            await collect(made, chat())
        assert text_of(await collect(made, chat())) == GREETING


async def test_a_wrong_secret_is_the_operators_trouble(server: OpenAI) -> None:
    """The caller hears that it failed, and no secret."""
    async with engine(server, **(ENTRA | {"entra_secret": "${WRONG}"})) as made:
        with pytest.raises(EngineFailed, match="vouches for this gateway refuses") as caught:
            await collect(made, chat())
    assert "nonsense" not in f"{caught.value!r} {caught.value.__cause__}"


async def test_a_token_of_nothing_is_none() -> None:
    """Otherwise it goes out as one, and blotting it out of a message writes stars between all letters."""

    async def fetch(_: Outgoing) -> Fetched:
        return Fetched(200, b'{"access_token": "", "expires_in": 60}', {})

    model = ModelSettings(name="far", engine="azure", base_url="http://x", model="m", **ENTRA)
    tokens = EntraTokens(model, Secret("secret"), fetch)
    with pytest.raises(EngineFailed):
        await tokens.token()
    assert tokens.hide("a secret") == "a ***"


async def test_filters_have_their_words(server: OpenAI) -> None:
    """A prompt that was stopped is a refusal of the request; an answer that was stopped says so at its end."""
    async with engine(server, "plays:azure-filtered-prompt.json") as made:
        with pytest.raises(ContentFiltered):
            await collect(made, chat())
    async with engine(server, "filtered") as made:
        assert finishes(await collect(made, chat())) == ["content_filter"]


async def test_a_version_that_is_none_is_not_found(server: OpenAI) -> None:
    """What Azure says reaches the caller as a model that is not there."""
    async with engine(server, api_version="2020-01-01") as made:
        with pytest.raises(NotFound, match="Resource not found"):
            await collect(made, chat())


@pytest.mark.parametrize(
    "settings",
    [{"entra_client": CLIENT}, {"entra_secret": "${SECRET}"}, {"api_key": "${NONE}"}, {"entra_token": "${NONE}"}],
)
def test_half_a_credential_is_told_at_the_start(settings: dict[str, Any]) -> None:
    """With what to add, and before anybody asks."""
    model = ModelSettings(name="far", engine="azure", base_url="http://x", model="m", **settings)
    with pytest.raises(ConfigError):
        RemoteEngine(model, ENV)


def test_no_secret_shows() -> None:
    """Neither a key nor a secret is in any representation."""
    for more in ({}, ENTRA):
        engine = RemoteEngine(ModelSettings(name="far", engine="azure", base_url="http://x", model="m", **more), ENV)
        wire: Any = engine._wire
        shown = f"{engine!r} {vars(engine)!r} {wire!r} {vars(wire)!r} {vars(wire._tokens) if wire._tokens else None}"
        assert AZURE_KEY not in shown
        assert CLIENT_SECRET not in shown
        assert engine._wire.hide(f"{AZURE_KEY} {CLIENT_SECRET}") != f"{AZURE_KEY} {CLIENT_SECRET}"
