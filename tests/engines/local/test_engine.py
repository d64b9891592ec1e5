"""What the engine does for many requests at once: batching, limits, ends, failures that stay where they are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from interlace.engines.core import Core
from interlace.engines.types import (
    Delta,
    EmbedRequest,
    GenerateRequest,
    Message,
    OutputRule,
    Sampling,
    Started,
    Tool,
    Usage,
)
from interlace.errors import ConfigError, ContextLengthExceeded, EngineFailed, InvalidRequest, Overloaded
from tests.support.driving import Outcomes, deltas, finish, load, run, text, token_ids

GREEDY = Sampling(max_tokens=16, temperature=0)


def _ask(request_id: str = "a", prompt: str = "The capital of France is", **fields: object) -> GenerateRequest:
    known = {key: fields.pop(key) for key in list(fields) if key in GenerateRequest.__struct_fields__}
    sampling = Sampling(**({"max_tokens": 16, "temperature": 0} | fields))  # type: ignore[arg-type]
    return GenerateRequest(id=request_id, prompt=prompt, sampling=sampling, **known)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def paris(decoder: Core) -> str:
    """The greedy answer of sixteen tokens that other tests compare with."""
    return text(run(decoder, [_ask()])["a"])


def test_answers(paris: str) -> None:
    """The model knows the capital of France."""
    assert paris.startswith(" Paris.")


def test_counts_and_order_of_events(decoder: Core) -> None:
    """Started first, Usage last, and the deltas' tokens add up to what is billed."""
    outcomes = run(decoder, [_ask()])["a"]
    assert outcomes[0] == Started(prompt_tokens=5)
    assert outcomes[-1] == Usage(prompt_tokens=5, completion_tokens=16)
    assert sum(delta.tokens for delta in deltas(outcomes)) == 16
    assert finish(outcomes).finish_reason == "length"


def test_prompt_as_ids_shows_its_text(decoder: Core, paris: str) -> None:
    """A prompt given as token ids is the same prompt, and `echo` learns its text."""
    ids = run(decoder, [_ask(logprobs=0, prompt_logprobs=True)])["a"][0]
    assert isinstance(ids, Started)
    tokens = tuple(entry.id for entry in ids.prompt_logprobs)
    outcomes = run(decoder, [GenerateRequest(id="a", prompt_ids=tokens, sampling=GREEDY)])["a"]
    assert outcomes[0] == Started(prompt_tokens=5, prompt_text="The capital of France is")
    assert text(outcomes) == paris


def test_stop_string_across_tokens(decoder: Core, paris: str) -> None:
    """A stop string that spans tokens ends the answer before it, says which it was, and frees the slot."""
    stop = paris[3:12]
    outcomes = run(decoder, [_ask(stop=("never", stop), logprobs=0)])["a"]
    assert text(outcomes) == paris[: paris.index(stop)]
    assert (finish(outcomes).finish_reason, finish(outcomes).stop) == ("stop", stop)
    shown = b"".join(entry.bytes for delta in deltas(outcomes) for entry in delta.logprobs)
    assert shown.startswith(text(outcomes).encode())
    assert not decoder.has_work()


def test_logprobs_follow_their_text(decoder: Core, paris: str) -> None:
    """The logprobs' bytes spell the answer."""
    outcomes = run(decoder, [_ask(logprobs=2)])["a"]
    assert b"".join(entry.bytes for delta in deltas(outcomes) for entry in delta.logprobs).decode() == paris
    assert all(len(entry.top) == 2 for delta in deltas(outcomes) for entry in delta.logprobs)


def test_end_of_sequence_ends(decoder: Core) -> None:
    """A chat answer ends with the template's end token, which is counted but not shown."""
    hello = (Message(role="user", content="Say hello."),)
    request = GenerateRequest(id="a", messages=hello, sampling=Sampling(temperature=0, max_tokens=200))
    outcomes = run(decoder, [request])["a"]
    assert finish(outcomes).finish_reason == "stop"
    assert "<|im_end|>" not in text(outcomes)
    longer = GenerateRequest(id="a", messages=hello, sampling=Sampling(temperature=0, max_tokens=90, ignore_eos=True))
    assert finish(run(decoder, [longer])["a"]).finish_reason == "length"


@pytest.mark.parametrize("strangers", [0, 20])
def test_a_seed_gives_the_same_tokens_in_any_batch(decoder: Core, strangers: int) -> None:
    """Seed 7 at temperature 1 answers the same alone and beside twenty others, and each choice its own way."""
    mine = _ask("mine", temperature=1.0, seed=7, n=2, logprobs=0)
    others = [_ask(f"s{i}", prompt=f"{i} little ducks", temperature=1.0) for i in range(strangers)]
    outcomes = run(decoder, [*others, mine])["mine"]
    alone = run(decoder, [mine])["mine"]
    assert token_ids(outcomes, 0) == token_ids(alone, 0)
    assert token_ids(outcomes, 1) == token_ids(alone, 1)
    assert token_ids(alone, 0) != token_ids(alone, 1)


def test_n_choices_with_prompt_logprobs(decoder: Core, paris: str) -> None:
    """With `echo`, all choices come after Started, and greedy ones are equal."""
    outcomes = run(decoder, [_ask(n=3, logprobs=0, prompt_logprobs=True)])["a"]
    assert isinstance(outcomes[0], Started)
    assert [text(outcomes, i) for i in range(3)] == [paris] * 3
    assert outcomes[-1] == Usage(5, 48)


def test_bias_and_penalties(decoder: Core) -> None:
    """A bias of 100 forces a token; a repetition penalty breaks a loop."""
    forced = run(decoder, [_ask(logit_bias={42: 100.0}, logprobs=0)])["a"]
    assert set(token_ids(forced)) == {42}
    loop = _ask(prompt="ha ha ha ha ha ha ha ha", max_tokens=24, logprobs=0)
    punished = _ask(prompt="ha ha ha ha ha ha ha ha", max_tokens=24, logprobs=0, repetition_penalty=1.8)
    assert len(set(token_ids(run(decoder, [punished])["a"]))) > len(set(token_ids(run(decoder, [loop])["a"])))


def test_what_a_caller_leaves_open_is_the_models_own(smollm2_gguf: Path, tmp_path: Path, paris: str) -> None:
    """The makers' suggestion (here: nearly greedy) fills the fields left open and no others; "openai" ignores it."""
    from interlace.config import ModelSettings
    from interlace.engines.local import load_core
    from interlace.models import pull

    pull(str(smollm2_gguf), tmp_path, name="suggests")
    manifest = tmp_path / "checkpoints" / "suggests" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"sampling": {}', '"sampling": {"top_k": 1}'))
    unset = ("temperature", "top_p", "top_k")
    for wish, expected in (("model", True), ("openai", False)):
        settings = ModelSettings(name="m", checkpoint="suggests", precision="f32", cache_bytes=64 << 20, sampling=wish)
        core = load_core(settings, tmp_path, lambda _: None)
        answers = run(core, [_ask(str(i), temperature=1.0, seed=i, unset=unset) for i in range(3)])
        assert all(text(answers[str(i)]) == paris for i in range(3)) == expected
    stated = run(core, [_ask(str(i), temperature=1.0, seed=i) for i in range(3)])
    assert any(text(stated[str(i)]) != paris for i in range(3))


def test_no_tokens_asked(decoder: Core) -> None:
    """max_tokens=0 computes nothing and ends well."""
    outcomes = run(decoder, [_ask(max_tokens=0)])["a"]
    assert outcomes == [Started(5), Delta(finish_reason="length"), Usage(5, 0)]


# --- limits ------------------------------------------------------------------------------------------------------


def test_a_prompt_past_the_context_names_both_numbers(decoder: Core) -> None:
    """The refusal says how long the context is and how long the prompt came out."""
    limit = decoder.capabilities().context_length
    (error,) = run(decoder, [GenerateRequest(id="a", prompt_ids=(5,) * (limit + 9))])["a"]
    assert isinstance(error, ContextLengthExceeded)
    assert str(limit) in error.message
    assert str(limit + 9) in error.message
    assert error.param == "prompt"
    assert "prompt is too long" in error.message
    (error,) = run(decoder, [_ask(max_tokens=limit)])["a"]
    assert isinstance(error, ContextLengthExceeded)
    assert re.search(rf"input length and `max_tokens` exceed context limit: \d+ \+ {limit} > {limit}\b", error.message)


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (_ask(logit_bias={10**9: 1.0}), "logit_bias"),
        (_ask(logit_bias={5: float("nan")}), "logit_bias"),
        (_ask(temperature=float("inf")), "temperature"),
        (_ask(n=10**9), "n"),
        (_ask(n=0), "n"),
        (_ask(prompt=""), "prompt"),
        (GenerateRequest(id="a", prompt_ids=(-1,)), "prompt"),
        (GenerateRequest(id="a", prompt_ids=(49_152,)), "prompt"),
        (EmbedRequest(id="a", texts=("x",)), "model"),
    ],
)
def test_bad_requests_are_refused_by_name(decoder: Core, request_: GenerateRequest, param: str) -> None:
    """Each refusal names the field."""
    (error,) = run(decoder, [request_])["a"]
    assert isinstance(error, InvalidRequest)
    assert error.param == param


def test_one_bad_request_never_disturbs_thirty_good_ones(decoder: Core, paris: str) -> None:
    """Broken schema, NaN bias, huge n, unknown ids, an impossible grammar: thirty streams beside them are unmoved."""
    bad = [
        _ask("b0", output=OutputRule("json_schema", '{"type": "nonsense"')),
        _ask("b1", logit_bias={5: float("nan")}),
        _ask("b2", n=10**6),
        _ask("b3", output=OutputRule("regex", "(((")),
        _ask("b4", output=OutputRule("grammar", "start: nothing_defined")),
        GenerateRequest(id="b5", prompt_ids=(10**7,)),
    ]
    good = [_ask(f"g{i}") for i in range(30)]
    mixed = [request for pair in zip(good, bad * 5, strict=True) for request in pair]
    seen: set[str] = set()
    outcomes = run(decoder, [r for r in mixed if not (r.id in seen or seen.add(r.id))])  # type: ignore[func-returns-value]
    assert all(text(outcomes[request.id]) == paris for request in good)
    assert all(isinstance(outcomes[request.id][-1], InvalidRequest) for request in bad)


def test_a_full_queue_is_refused_and_empties(smollm2_gguf: Path) -> None:
    """What comes at once is taken on as far as it can run or wait; the rest is refused with a time to come back."""
    core = load(smollm2_gguf, cache_bytes=16 << 20, max_sequences=3, max_waiting=2)
    requests = [_ask(str(i), max_tokens=4) for i in range(7)]
    outcomes = run(core, requests)
    refused = [outcomes[r.id][0] for r in requests if isinstance(outcomes[r.id][0], Overloaded)]
    assert len(refused) == 2
    assert all(error.retry_after_seconds for error in refused)
    assert sum(isinstance(o[-1], Usage) for o in outcomes.values()) == 5


def test_a_full_cache_leaves_the_queue_its_length(smollm2_gguf: Path) -> None:
    """Slots that the cache has no room for are no places to wait."""
    core = load(smollm2_gguf, cache_bytes=6 << 20, max_sequences=64, max_waiting=2)
    core.add(core.prepare(_ask("long", prompt="word " * 90, max_tokens=4)))
    core.step()
    requests = [_ask(str(i), prompt="word " * 60, max_tokens=4) for i in range(4)]
    outcomes: Outcomes = {"long": []} | {r.id: [] for r in requests}
    for request in requests[:2]:
        core.add(core.prepare(request))
    for request in requests[2:]:
        with pytest.raises(Overloaded):
            core.add(core.prepare(request))
    while core.has_work():
        for request_id, outcome in core.step():
            outcomes[request_id].append(outcome)
    assert [isinstance(outcomes[r.id][-1], Usage) for r in requests[:2]] == [True, True]


def test_cancel_frees_at_once(decoder: Core, paris: str) -> None:
    """A cancelled request yields nothing more and holds no block; its neighbour goes on."""

    def cancel(outcomes: Outcomes) -> None:
        if len(outcomes["gone"]) == 4:
            decoder.cancel("gone")

    outcomes = run(decoder, [_ask("gone", max_tokens=200), _ask("stays")], each_step=cancel)
    assert len(outcomes["gone"]) == 4
    assert text(outcomes["stays"]) == paris
    assert decoder.health().blocks_used == 0
    decoder.cancel("never heard of")


def test_a_small_cache_and_small_steps_change_nothing(smollm2_gguf: Path, decoder: Core) -> None:
    """Prompts read in pieces of nine tokens, and sequences that gave way and were computed again, answer the same."""
    tight = load(smollm2_gguf, cache_bytes=9 * 1_474_560, max_sequences=8, step_tokens=9)
    requests = [
        _ask(f"r{i}", prompt=f"Number {i} on the list of the most beautiful cities of Europe is", max_tokens=60)
        for i in range(8)
    ]
    small, large = run(tight, requests), run(decoder, requests)
    assert tight.health().preemptions, "the cache was too large for this test to show anything"
    for request in requests:
        assert text(small[request.id]) == text(large[request.id])
    health = tight.health()
    assert (health.blocks_used, health.blocks_total) == (0, 9)


def test_a_cache_too_small_for_a_block_is_refused(smollm2_gguf: Path) -> None:
    """The refusal names the setting and a size that would do."""
    with pytest.raises(ConfigError, match="cache_bytes"):
        load(smollm2_gguf, cache_bytes=1 << 20)


def test_schema_regex_and_neighbours(decoder: Core, paris: str) -> None:
    """Constrained outputs follow their rule while an unconstrained neighbour is unmoved."""
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "population": {"type": "integer"}},
        "required": ["city", "population"],
        "additionalProperties": False,
    }
    outcomes = run(
        decoder,
        [
            _ask("schema", output=OutputRule("json_schema", json.dumps(schema)), max_tokens=200, temperature=1.0, n=3),
            _ask("regex", output=OutputRule("regex", r"[a-c]{3}-\d{4}"), max_tokens=50, temperature=1.0),
            _ask("plain"),
        ],
    )
    for index in range(3):
        if finish(outcomes["schema"], index).finish_reason == "stop":
            assert set(json.loads(text(outcomes["schema"], index))) == {"city", "population"}
    assert re.fullmatch(r"[a-c]{3}-\d{4}", text(outcomes["regex"]))
    assert text(outcomes["plain"]) == paris


def _weather(request_id: str, tool_choice: str, *, strict: bool, **fields: object) -> GenerateRequest:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    }
    return GenerateRequest(
        id=request_id,
        messages=(Message("user", "What is the weather in Paris?"),),
        sampling=Sampling(max_tokens=200, temperature=0),
        tools=(Tool("get_weather", "Weather in a city", schema, strict),),
        tool_choice=tool_choice,
        **fields,  # type: ignore[arg-type]
    )


def test_a_rule_is_for_answers_that_are_no_call(decoder: Core) -> None:
    """A request with tools and a JSON format gets its call, rather than an error that the call is no JSON."""
    rule = OutputRule("json_object")
    asked = [
        _weather("forced", "required", strict=False, output=rule),
        _weather("own", "auto", strict=True, output=rule),
    ]
    outcomes = run(decoder, asked)
    for request_id in ("forced", "own"):
        assert isinstance(outcomes[request_id][-1], Usage), outcomes[request_id][-1]
        last = finish(outcomes[request_id])
        if request_id == "forced" or last.finish_reason == "tool_calls":
            assert [call.name for delta in deltas(outcomes[request_id]) for call in delta.tool_calls] == ["get_weather"]
        else:
            assert isinstance(json.loads(text(outcomes[request_id])), dict)


def test_a_strict_call_is_looked_at_once_more(decoder: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments that break a strict tool's schema, were the grammar to let them through, do not reach the caller."""
    loose = decoder._prompts.grammars.compile  # type: ignore[attr-defined]

    def without_schema(rule: object, tools: tuple[Tool, ...], *rest: object) -> object:
        return loose(rule, tuple(Tool(tool.name, tool.description) for tool in tools), *rest)

    monkeypatch.setattr(decoder._prompts.grammars, "compile", without_schema)  # type: ignore[attr-defined]
    strict, free = (_weather(name, "required", strict=name == "strict") for name in ("strict", "free"))
    outcomes = run(decoder, [strict, free])
    assert isinstance(outcomes["strict"][-1], EngineFailed)
    assert isinstance(outcomes["free"][-1], Usage)


def test_a_count_is_what_the_prompt_is_billed_by(decoder: Core) -> None:
    """Counted as it will run, and refused where it would be."""
    asked = [
        _ask(),
        _weather("b", "auto", strict=False),
        GenerateRequest(id="c", prompt_ids=(5, 6, 7), sampling=GREEDY),
    ]
    for request in asked:
        started = run(decoder, [request])[request.id][0]
        assert started.prompt_tokens == decoder.count(request)  # type: ignore[union-attr]
    with pytest.raises(ContextLengthExceeded):
        decoder.count(_ask(prompt="word " * 9000))
    for request in (_ask(prompt=""), GenerateRequest(id="c", prompt_ids=(49_152,), sampling=GREEDY)):
        with pytest.raises(InvalidRequest):
            decoder.count(request)
