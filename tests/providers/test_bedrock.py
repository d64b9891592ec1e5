"""Bedrock's Converse through our engine, against a server that checks signatures and bodies for itself."""

from __future__ import annotations

import asyncio
import base64
import json
import stat
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from interlace.config import ModelSettings
from interlace.engines.remote import RemoteEngine
from interlace.engines.remote.providers.bedrock_signing import Signer
from interlace.engines.types import (
    AudioPart,
    Delta,
    Event,
    FilePart,
    ImagePart,
    Message,
    Options,
    OutputRule,
    Reasoning,
    RefusalPart,
    Sampling,
    Started,
    TextPart,
    ThinkingPart,
    Thought,
    Tool,
    ToolCall,
    Usage,
)
from interlace.errors import (
    ConfigError,
    ContextLengthExceeded,
    EngineFailed,
    EngineUnavailable,
    InvalidRequest,
    ProviderLimited,
)
from tests.providers.servers.bedrock import ACCESS, BEARER, REGION, SEALED, SECRET, Bedrock, running_bedrock
from tests.support.asking import calls_of, chat, collect, finishes, text_of

CLAUDE = "anthropic.claude-sonnet-4-20250514-v1:0"
ARN = f"arn:aws:bedrock:{REGION}:123456789012:inference-profile/eu.{CLAUDE}"
NOVA = "amazon.nova-pro-v1:0"
LLAMA = "meta.llama3-70b-instruct-v1:0"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
TOOLS = (
    Tool("weather", "Says the weather.", {"type": "object", "properties": {"city": {"type": "string"}}}, cache="1h"),
    Tool("now", strict=True),
)


@pytest.fixture(scope="module")
def bedrock() -> Iterator[Bedrock]:
    """The server."""
    with running_bedrock() as running:
        yield running


@pytest.fixture(autouse=True)
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment of a machine with AWS keys and nothing else."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_BEARER_TOKEN_BEDROCK"):
        monkeypatch.delenv(name, raising=False)


@asynccontextmanager
async def engine(bedrock: Bedrock, model: str = CLAUDE, **more: Any) -> AsyncGenerator[RemoteEngine]:
    """A started engine, closed at the end."""
    patience: dict[str, Any] = {"first_token_seconds": 5, "between_tokens_seconds": 5, "region": REGION}
    settings = ModelSettings(name="far", engine="bedrock", model=model, base_url=bedrock.url, **(patience | more))
    running = RemoteEngine(settings)
    await running.start()
    try:
        yield running
    finally:
        await running.close()


async def ask(bedrock: Bedrock, model: str = CLAUDE, *, stream: bool = True, **request: Any) -> list[Event]:
    """All events of one answer."""
    async with engine(bedrock, model, stream=stream) as running:
        return await collect(running, chat(**request))


def thoughts_of(events: list[Event]) -> list[Thought]:
    """What was thought."""
    return [event.thought for event in events if isinstance(event, Delta) and event.thought is not None]


def stop_of(events: list[Event]) -> str | None:
    """The stop string that ended an answer."""
    return next(event.stop for event in events if isinstance(event, Delta) and event.finish_reason)


both = pytest.mark.parametrize("stream", [True, False])

# --- answers -----------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("model", [CLAUDE, ARN, "eu/odd name+%2F", NOVA])
async def test_an_answer_is_started_delta_usage(bedrock: Bedrock, stream: bool, model: str) -> None:
    """Text, end and count come through, streamed or not; the name of the model arrives as it was given, signed."""
    events = await ask(bedrock, model, stream=stream, text="words please", max_tokens=9)
    assert isinstance(events[0], Started)
    assert text_of(events) == "Grüße, world"
    assert finishes(events) == ["stop"]
    assert events[-1] == Usage(12, 7, service_tier="default")
    assert bedrock.seen[-1][:2] == ("ConverseStream" if stream else "Converse", model)
    assert bedrock.last["inferenceConfig"] == {"maxTokens": 9}


@both
async def test_parallel_calls(bedrock: Bedrock, stream: bool) -> None:
    """Text, then two calls with their ids, one without input; the input is JSON text, not JSON in a text."""
    events = await ask(bedrock, stream=stream, text="calls", tools=TOOLS)
    assert text_of(events) == "Let me look."
    calls = calls_of(events)
    assert [call[:2] for call in calls] == [("tooluse_1", "weather"), ("tooluse_2", "now")]
    assert [json.loads(call[2]) for call in calls] == [{"city": "Zürich", "days": 10}, {}]
    assert finishes(events) == ["tool_calls"]
    assert bedrock.last["toolConfig"] == {
        "tools": [
            {
                "toolSpec": {
                    "name": "weather",
                    "description": "Says the weather.",
                    "inputSchema": {"json": {"type": "object", "properties": {"city": {"type": "string"}}}},
                }
            },
            {"cachePoint": {"type": "default", "ttl": "1h"}},
            {
                "toolSpec": {
                    "name": "now",
                    "inputSchema": {"json": {"type": "object", "properties": {}}},
                    "strict": True,
                }
            },
        ]
    }


@both
async def test_thoughts(bedrock: Bedrock, stream: bool) -> None:
    """Thoughts come with their seal, and those that cannot be read come sealed."""
    events = await ask(bedrock, stream=stream, text="thinks")
    thoughts = thoughts_of(events)
    assert "".join(thought.text for thought in thoughts) == "First this."
    assert [thought.signature for thought in thoughts if thought.signature] == ["c2lnbmVk"]
    assert thoughts[-1] == Thought(redacted=SEALED)
    assert text_of(events) == "Done."


@both
@pytest.mark.parametrize(
    ("wish", "reason", "stop"),
    [
        ("long", "length", None),
        ("full", "length", None),
        ("stops", "stop", "two"),
        ("guarded", "content_filter", None),
        ("filtered", "content_filter", None),
    ],
)
async def test_reasons_to_stop(bedrock: Bedrock, stream: bool, wish: str, reason: str, stop: str | None) -> None:
    """Each reason of Bedrock's has ours; a stop sequence is told, and so is what a guardrail says instead."""
    events = await ask(bedrock, stream=stream, text=wish, sampling=Sampling(stop=("two", "three")))
    assert finishes(events) == [reason]
    assert stop_of(events) == stop
    assert text_of(events)
    assert bedrock.last["inferenceConfig"] == {"stopSequences": ["two", "three"]}
    assert bedrock.last["additionalModelResponseFieldPaths"] == ["/stop_sequence"]


@both
async def test_what_the_cache_did_is_counted(bedrock: Bedrock, stream: bool) -> None:
    """Tokens read from the cache and written to it stand beside Bedrock's input tokens, and are part of ours."""
    events = await ask(bedrock, stream=stream, text="cached")
    assert events[-1] == Usage(152, 7, cached_tokens=100, cache_write_tokens=40, service_tier="default")


@both
async def test_what_was_cached_for_an_hour_is_counted_apart(bedrock: Bedrock, stream: bool) -> None:
    """Bedrock bills a write for an hour at another price than one for five minutes."""
    used = (await ask(bedrock, stream=stream, text="cached-an-hour"))[-1]
    assert isinstance(used, Usage)
    assert (used.cache_write_tokens, used.cache_write_1h_tokens, used.disputed) == (40, 30, False)


async def test_usage_that_contradicts_is_kept_and_marked(bedrock: Bedrock) -> None:
    """No tokens for an answer that has some: it stands as Bedrock tells it, for reconciliation."""
    usage = (await ask(bedrock, text="contradicts"))[-1]
    assert usage == Usage(12, 0, disputed=True, service_tier="default")


async def test_usage_that_never_came_is_estimated(bedrock: Bedrock) -> None:
    """A stream without its last event is whole once the reason to stop is known; the count is ours, and says so."""
    usage = (await ask(bedrock, text="no-usage"))[-1]
    assert isinstance(usage, Usage)
    assert usage.estimated
    assert usage.completion_tokens > 0


# --- requests ----------------------------------------------------------------------------------------------------


async def test_a_whole_conversation(bedrock: Bedrock) -> None:
    """Every kind of part goes out in Bedrock's words, in order, with cache points after what is marked."""
    messages = (
        Message("system", "Be brief."),
        Message("developer", (TextPart("Be kind.", cache="default"),)),
        Message(
            "user",
            (
                TextPart("What is this?", cache="5m"),
                ImagePart(data=PIXEL, media_type="image/png"),
                FilePart(data=base64.b64encode(b"%PDF-1.7").decode(), media_type="application/pdf", name="a/b_c.pdf"),
                FilePart(text="plain", media_type="text/plain", name="a b c pdf"),
                AudioPart(data="UklGRg==", format="wav"),
            ),
        ),
        Message(
            "assistant",
            (ThinkingPart("Hm.", signature="c2ln"), ThinkingPart(redacted=SEALED), TextPart("Let me see.")),
            tool_calls=(
                ToolCall("c1", "weather", '{"city": "Ulm", "n": 1.50}', cache="default"),
                ToolCall("c2", "now", ""),
            ),
        ),
        Message(
            "tool", (TextPart("rain", cache="5m"), ImagePart(data=PIXEL, media_type="image/png")), tool_call_id="c1"
        ),
        Message("tool", "no clock", tool_call_id="c2", is_error=True, cache="1h"),
        Message("system", "Answer now."),
        Message("user", "words"),
        Message("assistant", (RefusalPart("I had rather"),)),
    )
    await ask(bedrock, messages=messages, tools=TOOLS, prefill=True)
    image = {"image": {"format": "png", "source": {"bytes": PIXEL}}}
    point = {"cachePoint": {"type": "default"}}
    assert bedrock.last["system"] == [{"text": "Be brief."}, {"text": "Be kind."}, point, {"text": "Answer now."}]
    user, assistant, results, prefill = bedrock.last["messages"]
    pdf, plain = base64.b64encode(b"%PDF-1.7").decode(), base64.b64encode(b"plain").decode()
    assert user["content"] == [
        {"text": "What is this?"},
        {"cachePoint": {"type": "default", "ttl": "5m"}},
        image,
        {"document": {"name": "a b c pdf", "format": "pdf", "source": {"bytes": pdf}}},
        {"document": {"name": "a b c pdf (2)", "format": "txt", "source": {"bytes": plain}}},
        {"audio": {"format": "wav", "source": {"bytes": "UklGRg=="}}},
    ]
    assert assistant["content"] == [
        {"reasoningContent": {"reasoningText": {"text": "Hm.", "signature": "c2ln"}}},
        {"reasoningContent": {"redactedContent": SEALED}},
        {"text": "Let me see."},
        {"toolUse": {"toolUseId": "c1", "name": "weather", "input": {"city": "Ulm", "n": 1.5}}},
        point,
        {"toolUse": {"toolUseId": "c2", "name": "now", "input": {}}},
    ]
    assert results["content"] == [
        {"toolResult": {"toolUseId": "c1", "content": [{"text": "rain"}, image]}},
        {"cachePoint": {"type": "default", "ttl": "5m"}},
        {"toolResult": {"toolUseId": "c2", "content": [{"text": "no clock"}], "status": "error"}},
        {"cachePoint": {"type": "default", "ttl": "1h"}},
        {"text": "words"},
    ]
    assert prefill == {"role": "assistant", "content": [{"text": "I had rather"}]}


async def test_wishes_of_an_anthropic_model(bedrock: Bedrock) -> None:
    """What only Anthropic's models know goes into additionalModelRequestFields; the rest has fields of its own."""
    await ask(
        bedrock,
        sampling=Sampling(top_k=40, temperature=0.5, top_p=0.9, max_tokens=5000),
        unset=(),
        reasoning=Reasoning(effort="high", budget_tokens=2048, summary="auto"),
        tools=TOOLS,
        tool_choice="function:now",
        parallel_tool_calls=False,
        output=OutputRule("json_schema", '{"type":"object"}', "shape", "A shape."),
        options=Options(service_tier="flex", metadata={"team": "red"}),
    )
    assert bedrock.last["inferenceConfig"] == {"maxTokens": 5000, "temperature": 0.5, "topP": 0.9}
    assert bedrock.last["additionalModelRequestFields"] == {
        "top_k": 40,
        "thinking": {"type": "enabled", "budget_tokens": 2048, "display": "summarized"},
        "tool_choice": {"type": "tool", "name": "now", "disable_parallel_tool_use": True},
    }
    schema = {"schema": '{"type":"object"}', "name": "shape", "description": "A shape."}
    assert bedrock.last["outputConfig"] == {
        "effort": "high",
        "textFormat": {"type": "json_schema", "structure": {"jsonSchema": schema}},
    }
    assert bedrock.last["toolConfig"]["toolChoice"] == {"tool": {"name": "now"}}
    assert bedrock.last["serviceTier"] == {"type": "flex"}
    assert bedrock.last["requestMetadata"] == {"team": "red"}


@pytest.mark.parametrize(
    ("reasoning", "thinking", "effort"),
    [
        (Reasoning(effort="low"), {"type": "adaptive"}, "low"),
        (Reasoning(effort="minimal"), {"type": "adaptive"}, "low"),
        (Reasoning(effort="max", summary="auto"), {"type": "adaptive", "display": "summarized"}, "max"),
        (Reasoning(effort="none"), {"type": "disabled"}, None),
        (Reasoning(adaptive=True, summary="omitted"), {"type": "adaptive", "display": "omitted"}, None),
    ],
)
async def test_how_much_a_model_thinks(bedrock: Bedrock, reasoning: Reasoning, thinking: Any, effort: Any) -> None:
    """Each way to ask for thoughts is one that Bedrock knows."""
    await ask(bedrock, reasoning=reasoning)
    assert bedrock.last.get("additionalModelRequestFields", {}).get("thinking") == thinking
    assert bedrock.last.get("outputConfig", {}).get("effort") == effort
    await ask(bedrock, reasoning=Reasoning(effort="low"), dialect="anthropic.messages")
    assert "additionalModelRequestFields" not in bedrock.last, "in Anthropic's own dialect an effort is only that"


async def test_models_of_others(bedrock: Bedrock) -> None:
    """Amazon's own models have another place for top_k; thoughts without a seal go back to all but Anthropic's."""
    thought = (Message("user", "a"), Message("assistant", (ThinkingPart("Hm."), TextPart("b"))), Message("user", "c"))
    await ask(bedrock, NOVA, messages=thought, sampling=Sampling(top_k=7), unset=())
    assert bedrock.last["additionalModelRequestFields"] == {"inferenceConfig": {"topK": 7}}
    assert bedrock.last["messages"][1]["content"][0] == {"reasoningContent": {"reasoningText": {"text": "Hm."}}}
    await ask(bedrock, CLAUDE, messages=thought)
    assert bedrock.last["messages"][1]["content"] == [{"text": "b"}]
    async with engine(bedrock, "arn:aws:bedrock:x:1:application-inference-profile/a", publisher="anthropic") as running:
        await collect(running, chat(sampling=Sampling(top_k=9), unset=()))
    assert bedrock.last["additionalModelRequestFields"]["top_k"] == 9


async def test_no_tool_may_be_called(bedrock: Bedrock) -> None:
    """Converse has no word for it: tools are not shown, and once calls were made it is refused."""
    await ask(bedrock, tools=TOOLS, tool_choice="none")
    assert "toolConfig" not in bedrock.last
    called = (
        Message("user", "a"),
        Message("assistant", tool_calls=(ToolCall("c", "now", "{}"),)),
        Message("tool", "b", tool_call_id="c"),
    )
    with pytest.raises(InvalidRequest) as caught:
        await ask(bedrock, messages=called, tools=TOOLS, tool_choice="none")
    assert caught.value.param == "tool_choice"


@pytest.mark.parametrize(
    "message",
    [
        Message("user", (ImagePart(data="AAAA", media_type="image/tiff"),)),
        Message("user", (FilePart(data="AAAA", media_type="application/zip"),)),
        Message("assistant", tool_calls=(ToolCall("c", "now", "[1]"),)),
        Message("assistant", tool_calls=(ToolCall("c", "now", '{"a": NaN}'),)),
        Message("system", (ImagePart(data="AAAA", media_type="image/png"),)),
    ],
    ids=lambda message: type(message.parts[0]).__name__ if message.parts else message.tool_calls[0].arguments,
)
async def test_what_converse_cannot_say(bedrock: Bedrock, message: Message) -> None:
    """It is refused by us, before anything is sent, with the field named."""
    before = len(bedrock.seen)
    with pytest.raises(InvalidRequest) as caught:
        await ask(bedrock, messages=(message,))
    assert caught.value.param == "messages"
    assert len(bedrock.seen) == before


async def test_bedrock_counts_for_anthropic(bedrock: Bedrock) -> None:
    """Bedrock's own counter is asked where it counts; elsewhere the count is an estimate, and says so."""
    async with engine(bedrock) as running:
        told, estimated = await running.tell_count(chat("words", tools=TOOLS))
    assert (told > 0, estimated) == (True, False)
    assert bedrock.seen[-1][0] == "CountTokens"
    async with engine(bedrock, LLAMA) as running:
        assert (await running.tell_count(chat("words")))[1]


# --- failures ----------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("wish", "error", "again"),
    [
        ("throttled", ProviderLimited, 7),
        ("not-ready", ProviderLimited, 1),
        ("timeout", EngineUnavailable, 5),
        ("unavailable", EngineUnavailable, 5),
        ("model-error", EngineFailed, None),
        ("too-long", ContextLengthExceeded, None),
        ("denied", EngineFailed, None),
        ("malformed", EngineFailed, None),
        ("html", EngineFailed, None),
    ],
)
async def test_refusals(bedrock: Bedrock, stream: bool, wish: str, error: type[Exception], again: Any) -> None:
    """Each exception of the service is an error of ours, with its hint when to come back."""
    with pytest.raises(error) as caught:
        await ask(bedrock, stream=stream, text=wish)
    assert type(caught.value) is error
    assert caught.value.retry_after_seconds == again  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("wish", "error"),
    [
        ("throttled-inside", ProviderLimited),
        ("failed-inside", EngineFailed),
        ("error-frame", EngineFailed),
        ("checksum", EngineFailed),
        ("endless", EngineFailed),
        ("garbage", EngineFailed),
        ("cut", EngineFailed),
    ],
)
async def test_failures_inside_a_stream(bedrock: Bedrock, wish: str, error: type[Exception]) -> None:
    """An exception inside a stream, a broken one, and one that is cut off fail cleanly."""
    with pytest.raises(error) as caught:
        await ask(bedrock, text=wish)
    assert type(caught.value) is error
    assert "secret" not in str(caught.value)


async def test_what_the_service_refuses_names_no_account(bedrock: Bedrock) -> None:
    """What Bedrock says of the caller's own request reaches the caller."""
    with pytest.raises(InvalidRequest, match="alternate"):
        await ask(bedrock, messages=(Message("assistant", "a"), Message("user", "b")))


# --- credentials -------------------------------------------------------------------------------------------------


async def test_an_api_key_goes_before_credentials(bedrock: Bedrock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Bedrock API key in its usual variable, or in one the settings name, is sent as it is."""
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", BEARER)
    await ask(bedrock)
    assert bedrock.users[-1] == "bearer"
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", "another")
    monkeypatch.setenv("MY_KEY", BEARER)
    async with engine(bedrock, api_key="${MY_KEY}") as running:
        await collect(running, chat())
    assert bedrock.users[-1] == "bearer"


async def test_a_session_token_is_signed(bedrock: Bedrock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials of a role come with a token, which is part of what is signed."""
    bedrock.keys["ASIAROLE"] = ("role-secret", "role-token")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ASIAROLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "role-secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "role-token")
    assert text_of(await ask(bedrock))
    assert bedrock.users[-1] == "ASIAROLE"


async def test_expired_credentials_are_looked_for_again(
    bedrock: Bedrock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Once Bedrock says that a token has expired, the next request takes what the chain holds by then, without a
    restart; the caller of the failed one hears nothing of accounts."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    bedrock.keys |= {"ASIAOLD": None, "ASIANEW": ("new", "new-token")}
    file = tmp_path / "credentials"
    lines = "[default]\naws_access_key_id={}\naws_secret_access_key={}\naws_session_token={}\n"
    file.write_text(lines.format("ASIAOLD", "old", "old-token"))
    async with engine(bedrock) as running:
        with pytest.raises(EngineFailed, match="does not accept this gateway's account"):
            await collect(running, chat())
        file.write_text(lines.format("ASIANEW", "new", "new-token"))
        assert text_of(await collect(running, chat()))
    assert bedrock.users[-1] == "ASIANEW"


async def test_no_credentials_at_all(bedrock: Bedrock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request fails with an error for the operator; the engine itself starts, so that one bad model locks no
    gateway."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(EngineFailed, match="no AWS credentials"):
        await ask(bedrock)


async def test_credentials_are_renewed_by_one_at_a_time(
    bedrock: Bedrock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A credential process is asked once for many requests at once, and again only near the end of what it gave."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    bedrock.keys["ASIAPROC"] = ("process-secret", "process-token")
    script, calls = tmp_path / "process.py", tmp_path / "calls"
    script.write_text(
        f"#!{sys.executable}\n"
        "import datetime, json, pathlib\n"
        f"pathlib.Path({str(calls)!r}).open('a').write('x')\n"
        "end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)\n"
        "print(json.dumps({'Version': 1, 'AccessKeyId': 'ASIAPROC', 'SecretAccessKey': 'process-secret',\n"
        "    'SessionToken': 'process-token', 'Expiration': end.isoformat()}))\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "config").write_text(f"[default]\nregion = {REGION}\ncredential_process = {script}\n")
    async with engine(bedrock, region="") as running:
        answers = await asyncio.gather(*(collect(running, chat()) for _ in range(5)))
    assert all(text_of(answer) for answer in answers)
    assert calls.read_text() == "x"


def test_a_region_must_be_known() -> None:
    """Without a region nothing can be signed: the error names the setting."""
    with pytest.raises(ConfigError, match="region"):
        RemoteEngine(ModelSettings(name="far", engine="bedrock", model=CLAUDE))


def test_the_package_is_named_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore is an extra: whoever lacks it is told how to get it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"interlace\[bedrock\]"):
        RemoteEngine(ModelSettings(name="far", engine="bedrock", model=CLAUDE, region=REGION))


def test_a_profile_that_is_not_there_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a reload tells its operator of a bug, and a start ends in a traceback."""
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ConfigError, match="nobody"):
        Signer("", {})
