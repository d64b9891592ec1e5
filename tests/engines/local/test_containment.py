"""What fails or goes away inside a step takes its own request along, and nothing of anybody else's."""

from __future__ import annotations

from interlace.engines.core import Core
from interlace.engines.types import Delta, GenerateRequest, OutputRule, Sampling, Started, Usage
from interlace.errors import InvalidRequest
from tests.support.driving import run, text

# Compiles, and grows past llguidance's limits once a few letters are out.
GROWING_REGEX = OutputRule("regex", r"(.*[a-m].{300}){3}")
GROWING_GRAMMAR = OutputRule("grammar", 'start: big\nbig: item*\nitem: "a" item* "b" | "a" item | item item "c" | "a"')


def _letters(decoder: Core, letters: str) -> dict[int, float]:
    """A bias that leaves the model only the tokens of `letters`."""
    request = GenerateRequest("ids", prompt=letters, sampling=Sampling(max_tokens=0, logprobs=0, prompt_logprobs=True))
    started = run(decoder, [request])["ids"][0]
    assert isinstance(started, Started)
    return {entry.id: 100.0 for entry in started.prompt_logprobs}


def test_a_rule_that_outgrows_its_limits_in_all_choices_at_once(decoder: Core) -> None:
    """All choices fail in the same step: one refusal, for the caller's fault, and the neighbour is unmoved."""
    plain = GenerateRequest("plain", prompt="The capital of France is", sampling=Sampling(max_tokens=30, temperature=0))
    alone = text(run(decoder, [plain])["plain"])
    for rule, letters in ((GROWING_REGEX, " ab"), (GROWING_GRAMMAR, "a" * 8)):
        sampling = Sampling(max_tokens=200, temperature=0, logit_bias=_letters(decoder, letters))
        growing = GenerateRequest("growing", prompt="x", n=4, sampling=sampling, output=rule)
        outcomes = run(decoder, [growing, plain])
        errors = [outcome for outcome in outcomes["growing"] if not isinstance(outcome, Started | Delta)]
        assert [type(error) for error in errors] == [InvalidRequest]
        assert isinstance(errors[0], InvalidRequest)
        assert errors[0].param == f"structured_outputs.{rule.kind}"
        assert "too complex" in errors[0].message
        assert outcomes["growing"][-1] is errors[0], "nothing follows a refusal"
        assert len(outcomes["growing"]) < 100, "refused before its masks take seconds"
        assert text(outcomes["plain"]) == alone
        assert decoder.health().blocks_used == 0


def test_an_id_can_be_used_again_once_cancelled(decoder: Core) -> None:
    """What a cancelled request had not yet been told is not told to the next one of its name."""
    request = GenerateRequest("a", prompt="The", sampling=Sampling(max_tokens=2, temperature=0))
    decoder.add(decoder.prepare(request))
    decoder.cancel("a")
    assert not decoder.has_work()
    outcomes = run(decoder, [request])["a"]
    assert sum(isinstance(outcome, Started) for outcome in outcomes) == 1


def test_echo_alone_reads_the_prompt_once(decoder: Core) -> None:
    """Only the first of many choices without tokens computes anything."""
    steps = 0

    def count(_: object) -> None:
        nonlocal steps
        steps += 1

    sampling = Sampling(max_tokens=0, logprobs=0, prompt_logprobs=True)
    outcomes = run(decoder, [GenerateRequest("a", prompt="One two", n=128, sampling=sampling)], each_step=count)["a"]
    assert steps == 1
    assert sum(isinstance(outcome, Delta) for outcome in outcomes) == 128
    assert outcomes[-1] == Usage(2, 0)
