"""What providers answer, well and oddly, as the events of an engine."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from interlace.engines.types import Delta, EmbedRequest, GenerateRequest, Sampling, Started, Tool, Usage
from interlace.errors import EngineFailed
from tests.support.asking import OPEN, calls_of, chat, collect, finishes, remote, text_of
from tests.support.provider import Provider

GREETING = "Grüße, world"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("max_tokens", [None, 3, 4, 5])
async def test_an_answer_is_started_delta_usage(provider: Provider, stream: bool, max_tokens: int | None) -> None:
    """The order of events, the text, the end and the provider's own count are told, streamed or not."""
    async with remote(provider.url, "instant:4", stream=stream) as engine:
        events = await collect(engine, chat("hello out there", max_tokens=max_tokens))
    told = min(max_tokens or 4, 4)
    assert isinstance(events[0], Started)
    assert events[0].estimated
    assert text_of(events) == "".join(f"w{i} " for i in range(told))
    assert finishes(events) == ["length" if told == 3 else "stop"]
    assert events[-1] == Usage(prompt_tokens=3, completion_tokens=told)
    assert all(isinstance(event, Delta) for event in events[1:-1])
    if stream:
        assert [event.tokens for event in events[1:-1] if isinstance(event, Delta)] == [1] * told + [0]


@pytest.mark.parametrize("stream", [True, False])
async def test_choices_are_kept_apart(provider: Provider, stream: bool) -> None:
    """Each of `n` choices gets its own text and end; usage counts them together."""
    async with remote(provider.url, "instant:2", stream=stream) as engine:
        events = await collect(engine, chat(n=3))
    assert [text_of(events, i) for i in range(3)] == ["w0 w1 "] * 3
    assert finishes(events) == ["stop"] * 3
    assert events[-1] == Usage(3, 6)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("prompt", [{"prompt": "a b c d"}, {"prompt_ids": (5, 6, 7, 8)}])
async def test_prompts_go_to_the_completions_endpoint(provider: Provider, stream: bool, prompt: Any) -> None:
    """Text and token ids are continued, not talked to."""
    async with remote(provider.url, "instant:2", stream=stream) as engine:
        events = await collect(engine, GenerateRequest(id="r", sampling=Sampling(max_tokens=9), unset=OPEN, **prompt))
    assert provider.seen[-1].path == "/v1/completions"
    assert text_of(events) == "w0 w1 "
    assert events[-1] == Usage(4, 2)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("shape", ["chat", "completions"])
async def test_logprobs_come_in_both_shapes(provider: Provider, stream: bool, shape: str) -> None:
    """Chosen tokens and alternatives, best first, with bytes made from the text where none are told."""
    sampling = Sampling(max_tokens=2, logprobs=2)
    request = chat(sampling=sampling) if shape == "chat" else GenerateRequest(id="r", prompt="a b", sampling=sampling)
    async with remote(provider.url, "instant:2", stream=stream) as engine:
        events = await collect(engine, request)
    tokens = [token for event in events if isinstance(event, Delta) for token in event.logprobs]
    assert [(token.bytes, token.logprob) for token in tokens] == [(b"w0 ", -0.25), (b"w1 ", -0.25)]
    assert [(top.bytes, top.logprob) for top in tokens[0].top] == [(b"o0", -1.0), (b"o1", -2.0)]
    assert sum(event.tokens for event in events if isinstance(event, Delta)) == 2


@pytest.mark.parametrize("how", ["good", "repeated", "same-index", "no-index", "object", "whole"])
async def test_parallel_tool_calls_are_put_together(provider: Provider, how: str) -> None:
    """However a server numbers its pieces, two calls come out as two calls, each named once."""
    async with remote(provider.url, f"tools:{how}", stream=how != "whole") as engine:
        events = await collect(engine, chat(tools=(Tool("weather"), Tool("time"))))
    (first, name, arguments), second = calls_of(events)
    assert (first, name, json.loads(arguments)) == ("call_a", "weather", {"city": "Paris"})
    assert (second[0], second[1], json.loads(second[2])) == ("call_b", "time", {"zone": "CET"})
    assert finishes(events) == ["tool_calls"]
    assert events[-1].completion_tokens == 8  # type: ignore[union-attr]


@pytest.mark.parametrize("how", ["crlf", "cr", "multi", "comments", "bytes", "bom", "space", "open", "extra"])
async def test_events_are_read_however_they_are_written(provider: Provider, how: str) -> None:
    """Whatever the specification of event streams allows, and a missing last blank line, changes nothing."""
    async with remote(provider.url, f"odd-lines:{how}") as engine:
        events = await collect(engine, chat())
    assert text_of(events) == GREETING
    assert events[-1] == Usage(5, 2, service_tier="default" if how == "extra" else "")


async def test_a_reason_to_end_in_every_chunk_does_not_end_it(provider: Provider) -> None:
    """The end is the end of the stream: each choice is told to have ended once, after all of its text."""
    async with remote(provider.url, "finish-always") as engine:
        events = await collect(engine, chat())
    assert text_of(events) == "one two three "
    assert finishes(events) == ["stop"]


async def test_thoughts_count_and_parts_are_text(provider: Provider) -> None:
    """Reasoning is counted as tokens though there is no place to show it; a refusal is what was said."""
    async with remote(provider.url, "thinker") as engine:
        events = await collect(engine, chat())
    assert text_of(events) == "So. No."
    assert finishes(events) == ["stop"]
    assert events[-1] == Usage(likely(events), 4, estimated=True)


def likely(events: list[Any]) -> int:
    """The estimate that came with the first event."""
    assert isinstance(events[0], Started)
    return events[0].prompt_tokens


async def test_a_provider_that_cannot_stream_is_read_whole(provider: Provider) -> None:
    """JSON where events were asked for is an answer too."""
    async with remote(provider.url, "no-stream:3") as engine:
        events = await collect(engine, chat())
    assert text_of(events) == "w0 w1 w2 "
    assert events[-1] == Usage(3, 3)


async def test_no_tokens_need_nobody(provider: Provider) -> None:
    """Only `echo` asks for no tokens; the prompt is shown again without a call that somebody pays."""
    before = len(provider.seen)
    async with remote(provider.url, "instant") as engine:
        events = await collect(engine, GenerateRequest(id="r", prompt="a", n=2, sampling=Sampling(max_tokens=0)))
    assert events == [
        Started(0),
        Delta(0, finish_reason="length"),
        Delta(1, finish_reason="length"),
        Usage(0, 0),
    ]
    assert len(provider.seen) == before


# --- usage -------------------------------------------------------------------------------------------------------

COUNTED = '"prompt_tokens": 9, "completion_tokens": 7'

# what the provider reports → what is billed
REPORTS: dict[str, tuple[str, Usage]] = {
    "cached": (f'{{{COUNTED}, "prompt_tokens_details": {{"cached_tokens": 4}}}}', Usage(9, 7, 4)),
    "written": (f'{{{COUNTED}, "prompt_tokens_details": {{"cache_write_tokens": 3}}}}', Usage(9, 7, 0, 3)),
    "reasoning": (f'{{{COUNTED}, "completion_tokens_details": {{"reasoning_tokens": 5}}}}', Usage(9, 7, 0, 0, 5)),
    "null details": (f'{{{COUNTED}, "prompt_tokens_details": null, "completion_tokens_details": 1}}', Usage(9, 7)),
    "in the last chunk": (f"={{{COUNTED}}}", Usage(9, 7)),
    "reasoning beside": (
        f'{{{COUNTED}, "total_tokens": 21, "completion_tokens_details": {{"reasoning_tokens": 5}}}}',
        Usage(9, 12, reasoning_tokens=5),
    ),
    "another name for cached": (f'{{{COUNTED}, "prompt_cache_hit_tokens": 8}}', Usage(9, 7, 8)),
    "more cached than read": (
        f'{{{COUNTED}, "prompt_tokens_details": {{"cached_tokens": 90}}}}',
        Usage(9, 7, 9, disputed=True),
    ),
    "more thought than said": (
        f'{{{COUNTED}, "completion_tokens_details": {{"reasoning_tokens": 50}}}}',
        Usage(9, 7, reasoning_tokens=7, disputed=True),
    ),
    "a sum that is none": (f'{{{COUNTED}, "total_tokens": 99}}', Usage(9, 7, disputed=True)),
    "a prompt longer than its texts": (
        '{"prompt_tokens": 5000, "completion_tokens": 7}',
        Usage(5000, 7, disputed=True),
    ),
    "no prompt": ('{"prompt_tokens": 0, "completion_tokens": 7}', Usage(0, 7, disputed=True)),
    "zero of everything": ('{"prompt_tokens": 0, "completion_tokens": 0}', Usage(8, 3, estimated=True)),
    "only the prompt": ('{"prompt_tokens": 9}', Usage(9, 3, estimated=True)),
    "whole floats": ('{"prompt_tokens": 9.0, "completion_tokens": 7.0}', Usage(9, 7)),
    "negative": ('{"prompt_tokens": 9, "completion_tokens": -7}', Usage(9, 3, estimated=True)),
    "beyond any count": ('{"prompt_tokens": 9, "completion_tokens": 1e300}', Usage(9, 3, estimated=True)),
    "texts": ('{"prompt_tokens": 9, "completion_tokens": "7"}', Usage(9, 3, estimated=True)),
    "true": ('{"prompt_tokens": 9, "completion_tokens": true}', Usage(9, 3, estimated=True)),
    "nothing for something": ('{"prompt_tokens": 9, "completion_tokens": 0}', Usage(9, 0, disputed=True)),
    "a list": ("[1]", Usage(8, 3, estimated=True)),
    "nothing": ("null", Usage(8, 3, estimated=True)),
}


@pytest.mark.parametrize("report", REPORTS)
async def test_usage_is_the_providers_or_marked_as_ours(provider: Provider, report: str) -> None:
    """What is reported is billed, and marked where it cannot be; what is not is estimated, and marked so."""
    told, expected = REPORTS[report]
    async with remote(provider.url, f"usage:{told}") as engine:
        events = await collect(engine, chat("hello out there"))
    assert events[-1] == expected


async def test_more_than_was_allowed_is_the_truth(provider: Provider) -> None:
    """A provider that uses more than `max_tokens` is recorded as it says: somebody will have to pay it."""
    async with remote(provider.url, "liar") as engine:
        events = await collect(engine, chat(max_tokens=7))
    assert events[-1] == Usage(3, 70, disputed=True)


async def test_one_that_refuses_stream_options_is_asked_without(provider: Provider) -> None:
    """The first request costs one more call; from then on it is known. The usage is ours then."""
    async with remote(provider.url, "no-stream-options") as engine:
        for _ in range(2):
            events = await collect(engine, chat())
            assert events[-1].estimated  # type: ignore[union-attr]
    assert ["stream_options" in body for body in provider.bodies("no-stream-options")] == [True, False, False]


# --- embeddings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["instant", "instant:floats"])
@pytest.mark.parametrize("given", [{"texts": ("a b c", "de")}, {"ids": ((1, 2, 3, 4, 5), (6, 7))}])
async def test_embeddings_come_in_the_order_of_the_inputs(provider: Provider, model: str, given: Any) -> None:
    """Numbers or base64, and rows in any order: bytes of float32 in ours, with the provider's count."""
    async with remote(provider.url, model, embeds=True) as engine:
        got = await engine.embed(EmbedRequest(id="r", **given))
    assert [struct.unpack("<3f", row) for row in got.rows] == [(5.0, 0.5, -1.0), (2.0, 0.5, -1.0)]
    assert got.dimensions == 3
    assert (got.prompt_tokens, got.estimated) == (4 if "texts" in given else 7, False)


async def test_embeddings_without_usage_are_estimated(provider: Provider) -> None:
    """A provider that counts nothing does not work for nothing."""
    async with remote(provider.url, "embed:plain", embeds=True) as engine:
        got = await engine.embed(EmbedRequest(id="r", texts=("12345678", "123")))
    assert (got.prompt_tokens, got.estimated) == (3, True)


@pytest.mark.parametrize("how", ["few", "ragged", "order", "text", "huge"])
async def test_wrong_embeddings_are_no_answer(provider: Provider, how: str) -> None:
    """Too few rows, rows of several lengths, rows that cannot be placed, numbers that are none: the request fails."""
    async with remote(provider.url, f"embed:{how}", embeds=True) as engine:
        with pytest.raises(EngineFailed, match="embeddings"):
            await engine.embed(EmbedRequest(id="r", texts=("a", "b")))


async def test_embeddings_of_another_length_than_set_are_refused(provider: Provider) -> None:
    """`dimensions` is a promise to callers; an answer that breaks it is none."""
    async with remote(provider.url, "embed:plain", embeds=True, dimensions=3) as engine:
        assert engine.capabilities().dimensions == 3
        with pytest.raises(EngineFailed, match="length"):
            await engine.embed(EmbedRequest(id="r", texts=("a", "b")))
