"""Random histories of the whole engine on a tiny model: whatever runs beside a request, it answers as it does alone.

A cache of seven blocks for sequences of up to four, and steps of eleven tokens, make sequences give way and prompts
be read in pieces while stop strings and half characters are held back and grammars are half way. Many prompts begin
with the same text, so that blocks are found again, of the same organisation's requests and of one's own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlace.engines.core import Core
from interlace.engines.types import BATCH_PRIORITY, Delta, GenerateRequest, OutputRule, Sampling, Started, Usage
from interlace.errors import InterlaceError
from tests.support.driving import Outcomes, deltas, load, run
from tests.support.tiny import CONTEXT, TOKENS, VOCABULARY, tiny_llama_safetensors

BLOCK_BYTES = 2 * 2 * 2 * 32 * 16 * 4  # layers, keys and values, heads, tokens, head size, float32
EOS = 2
EURO = {"#": "â", "$": "Ĥ", "%": "¬"}  # three tokens become the bytes of "€", as byte-level vocabularies write them
EURO_IDS = [TOKENS.index(token) for token in EURO]
COMMON = tuple(3 + (7 * i) % (VOCABULARY - 3) for i in range(CONTEXT))  # what many prompts begin with
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 22, 333]}}, "required": ["a"]}
RULES = [
    OutputRule("regex", "[a-c]*"),
    OutputRule("regex", "(yes|no)( yes| no){0,9}"),
    OutputRule("regex", "(€|x){1,12}"),
    OutputRule("json_schema", json.dumps(SCHEMA)),
    OutputRule("json_object"),
    OutputRule("grammar", 'start: item+\nitem: "<" /[a-z]{1,3}/ ">"'),
]


@dataclass(frozen=True)
class Visit:
    """A request, the step before which it comes, and how many steps later it is given up (None: never)."""

    request: GenerateRequest
    comes: int
    stays: int | None


@st.composite
def samplings(draw: st.DrawFn, room: int) -> Sampling:
    """Any sampling whose result is determined: greedy or seeded."""
    bias = draw(st.sampled_from([{}, {}, dict.fromkeys(EURO_IDS, 9.0), {EOS: 6.0}, {40: -100.0, 70: 4.0}]))
    logprobs = draw(st.sampled_from([None, 0, 3]))
    return Sampling(
        max_tokens=draw(st.one_of(st.none(), st.integers(0, room))),
        temperature=draw(st.sampled_from([0.0, 0.3, 1.0, 2.0])),
        top_p=draw(st.sampled_from([1.0, 0.8])),
        top_k=draw(st.sampled_from([0, 20])),
        min_p=draw(st.sampled_from([0.0, 0.05])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3])),
        presence_penalty=draw(st.sampled_from([0.0, 0.5])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.4])),
        seed=draw(st.integers(-9, 99)),
        stop=tuple(draw(st.lists(st.sampled_from(["e", "ab", "€", "€€", "th", "\ufffd", "x>"]), max_size=2))),
        ignore_eos=draw(st.booleans()),
        logit_bias=bias,
        logprobs=logprobs,
        prompt_logprobs=logprobs is not None and draw(st.booleans()),
    )


@st.composite
def visits(draw: st.DrawFn) -> list[Visit]:
    """Up to nine visits within some tens of steps."""
    found = []
    for number in range(draw(st.integers(1, 9))):
        size = draw(st.integers(1, CONTEXT - 1))
        alike = draw(st.one_of(st.just(0), st.integers(0, size)))
        own = draw(st.lists(st.integers(3, VOCABULARY - 1), min_size=size - alike, max_size=size - alike))
        request = GenerateRequest(
            id=f"r{number}",
            prompt_ids=(*COMMON[:alike], *own),
            n=draw(st.sampled_from([1, 1, 1, 2, 3])),
            sampling=draw(samplings(CONTEXT - size)),
            output=draw(st.one_of(st.none(), st.sampled_from(RULES))),
            tenant=draw(st.sampled_from(["one", "other"])),
            priority=draw(st.sampled_from([BATCH_PRIORITY, -1, 0, 0, 1])),
        )
        stays = draw(st.one_of(st.none(), st.none(), st.integers(0, 30)))
        found.append(Visit(request, draw(st.integers(0, 60)), stays))
    return found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with three tokens that are thirds of a character."""
    path = tiny_llama_safetensors(tmp_path_factory.mktemp("tiny") / "m")
    file = path / "tokenizer.json"
    layout = json.loads(file.read_text())
    layout["model"]["vocab"] = {EURO.get(token, token): id for token, id in layout["model"]["vocab"].items()}
    file.write_text(json.dumps(layout))
    return path


@pytest.fixture(scope="module")
def roomy(checkpoint: Path) -> Core:
    """Room for everything; here each request runs alone."""
    return load(checkpoint, cache_bytes=64 * BLOCK_BYTES)


@pytest.fixture(scope="module")
def tight(checkpoint: Path) -> Core:
    """Room for hardly two of the longest sequences."""
    return load(checkpoint, cache_bytes=7 * BLOCK_BYTES, max_sequences=5, step_tokens=11, max_waiting=10**6)


def _play(core: Core, history: list[Visit]) -> Outcomes:
    """All visits in their order, until nothing is left to do."""
    outcomes: Outcomes = {visit.request.id: [] for visit in history}
    refused: set[str] = set()
    for now in range(20_000):
        for visit in history:
            if visit.comes == now:
                try:
                    core.add(core.prepare(visit.request))
                except InterlaceError as error:
                    refused.add(visit.request.id)
                    outcomes[visit.request.id].append(error)
            if visit.stays is not None and visit.comes + visit.stays == now:
                core.cancel(visit.request.id)
        if core.has_work():
            for id, outcome in core.step():
                outcomes[id].append(outcome)
        elif now > max(visit.comes for visit in history):
            return outcomes
        health = core.health()
        assert health.blocks_used <= health.blocks_total
    raise AssertionError("the engine still has work")


def _answer(outcomes: list[Any], index: int) -> list[tuple[Any, ...]]:
    """What a client sees of a choice, without the logprobs' values."""
    return [
        (delta.text, delta.tokens, delta.finish_reason, delta.stop, [entry.id for entry in delta.logprobs])
        for delta in deltas(outcomes, index)
    ]


def _logprobs(outcomes: list[Any]) -> list[float]:
    """Every logprob in order of choice, the prompt's first."""
    entries = list(outcomes[0].prompt_logprobs) if outcomes else []
    entries += [e for o in sorted((o for o in outcomes if isinstance(o, Delta)), key=_index) for e in o.logprobs]
    return [entry.logprob for entry in entries if entry.logprob is not None]


def _index(delta: Delta) -> int:
    return delta.index


def _check(request: GenerateRequest, outcomes: list[Any]) -> None:
    """What holds of every answer that came to its end."""
    assert not isinstance(outcomes[-1], InterlaceError), f"{outcomes[-1]!r} for {request}"
    assert [isinstance(o, Started) for o in outcomes] == [True] + [False] * (len(outcomes) - 1)
    assert isinstance(outcomes[-1], Usage)
    assert outcomes[-1].completion_tokens == sum(o.tokens for o in outcomes if isinstance(o, Delta))
    wished = request.sampling
    for index in range(request.n):
        own = deltas(outcomes, index)
        assert [delta.finish_reason is not None for delta in own] == [False] * (len(own) - 1) + [True]
        text, entries = "".join(delta.text for delta in own), [e for delta in own for e in delta.logprobs]
        assert wished.max_tokens is None or sum(delta.tokens for delta in own) <= wished.max_tokens
        assert not any(stop in text for stop in wished.stop)
        if wished.logprobs is not None:
            spelled = b"".join(e.bytes for e in entries if e.id > EOS).decode(errors="replace")
            assert spelled.startswith(text) if own[-1].stop else spelled == text
            assert all(len(entry.top) == wished.logprobs for entry in entries)


def _tell_apart(tight: Core, roomy: Core, history: list[Visit]) -> None:
    crowded = _play(tight, history)
    assert tight.health().blocks_used == 0
    assert (tight.health().running, tight.health().waiting) == (0, 0)
    for visit in history:
        ours = crowded[visit.request.id]
        alone = run(roomy, [visit.request])[visit.request.id]
        if visit.stays is None:
            _check(visit.request, ours)
            assert ours[0].prompt_tokens == alone[0].prompt_tokens
        for index in range(visit.request.n):
            seen, expected = _answer(ours, index), _answer(alone, index)
            assert seen == (expected if visit.stays is None else expected[: len(seen)])
        if visit.stays is None:
            pairs = zip(_logprobs(ours), _logprobs(alone), strict=True)
            assert all(abs(one - other) < 1e-4 for one, other in pairs)


_ANY = settings(deadline=None, suppress_health_check=list(HealthCheck))


@settings(_ANY, max_examples=25)
@given(history=visits())
def test_among_others_as_alone(tight: Core, roomy: Core, history: list[Visit]) -> None:
    """Texts, tokens, ends and logprobs are those of each request alone; nothing leaks; what was given up is a part."""
    _tell_apart(tight, roomy, history)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
@settings(_ANY, max_examples=800)
@given(history=visits())
def test_among_others_as_alone_at_length(tight: Core, roomy: Core, history: list[Visit]) -> None:
    """The same, for many histories."""
    _tell_apart(tight, roomy, history)
