"""What prompts find in the cache, on the real model and on blocks alone: the same answers, and never another's."""

from __future__ import annotations

from pathlib import Path

import pytest

from interlace.engines.core import Core
from interlace.engines.local.blocks import Blocks, Names
from interlace.engines.local.graph import BLOCK
from interlace.engines.local.scheduler import Scheduler
from interlace.engines.local.sequences import Sequence
from interlace.engines.types import GenerateRequest, Sampling, Started, Usage
from tests.support.driving import Outcomes, load, run, text
from tests.support.paged import PagedModel, step
from tests.support.tiny import CONTEXT, VOCABULARY, tiny_llama_safetensors

TALE = "Once upon a time there was a miller who had three sons, a mill, a donkey and a cat. " * 6


def _ask(id: str, prompt: str, tenant: str = "t", n: int = 1, **sampling: object) -> GenerateRequest:
    wished = Sampling(**({"max_tokens": 24, "temperature": 0} | sampling))  # type: ignore[arg-type]
    return GenerateRequest(id=id, prompt=prompt, tenant=tenant, n=n, sampling=wished)


def _told(outcomes: Outcomes, id: str) -> tuple[int, int]:
    """Prompt tokens and those found, which the first and the last word of an answer agree on."""
    first, last = outcomes[id][0], outcomes[id][-1]
    assert isinstance(first, Started)
    assert isinstance(last, Usage)
    assert (first.prompt_tokens, first.cached_tokens) == (last.prompt_tokens, last.cached_tokens)
    return last.prompt_tokens, last.cached_tokens


# --- the real model ----------------------------------------------------------------------------------------------


def test_what_was_found_changes_no_answer(smollm2_gguf: Path) -> None:
    """Prompts that go on in different ways from a beginning that was computed before are answered as on a fresh engine,
    and say how much they found: whole blocks, and never the whole prompt."""
    warm = load(smollm2_gguf, cache_bytes=64 << 20)
    prompts = {name: TALE + end for name, end in (("a", "The cat"), ("b", "The eldest son"), ("c", "The cat"))}
    found = 0
    for name, prompt in prompts.items():
        outcomes = run(warm, [_ask(name, prompt)])
        alone = run(load(smollm2_gguf, cache_bytes=64 << 20), [_ask(name, prompt)])
        assert text(outcomes[name]) == text(alone[name])
        (whole, cached), (_, nothing) = _told(outcomes, name), _told(alone, name)
        assert nothing == 0
        assert cached == (0 if name == "a" else (whole - 1) // BLOCK * BLOCK)
        found += cached
    assert warm.health().prefix_tokens == found
    assert warm.health().blocks_used == 0
    assert warm.health().blocks_cached > 0


def test_an_answer_is_found_by_what_goes_on_from_it(decoder: Core) -> None:
    """The next turn of a conversation finds the answer of the turn before, not only its question."""
    first = run(decoder, [_ask("first", TALE, tenant="turns", max_tokens=70, ignore_eos=True, logprobs=0)])["first"]
    answer = text(first)
    whole, cached = _told(run(decoder, [_ask("next", f"{TALE}{answer} Then", tenant="turns")]), "next")
    question = decoder.count(_ask("q", TALE))
    assert cached >= question
    assert whole > cached


def test_choices_share_the_blocks_of_their_prompt(smollm2_gguf: Path) -> None:
    """Eight choices of one prompt hold its blocks once, and are not computed eight times."""
    core = load(smollm2_gguf, cache_bytes=64 << 20)
    used: list[int] = []
    outcomes = run(
        core,
        [_ask("n", TALE, n=8, temperature=1.0, seed=3)],
        each_step=lambda _: used.append(core.health().blocks_used),
    )
    whole, cached = _told(outcomes, "n")
    assert cached == 0, "what a request finds of its own is no gift to it"
    shared = whole // BLOCK
    assert max(used) <= shared + 8 * 2
    assert core.health().prefix_tokens == 7 * ((whole - 1) // BLOCK * BLOCK)
    apart = [_ask(str(i), TALE, tenant=str(i), n=i + 1, temperature=1.0, seed=3) for i in (0, 7)]
    fresh = run(load(smollm2_gguf, cache_bytes=64 << 20), apart)
    assert [text(outcomes["n"], i) for i in range(8)] == [text(fresh["7"], i) for i in range(8)]
    assert text(fresh["0"]) == text(outcomes["n"], 0)


def test_nothing_is_found_of_another_organisation(decoder: Core) -> None:
    """The same prompt of another tenant, or of nobody, finds nothing, however often it was asked."""
    for tenant, found in (("mine", False), ("mine", True), ("theirs", False), ("", False), ("min", False)):
        whole, cached = _told(run(decoder, [_ask("x", f"Apart. {TALE}", tenant=tenant)]), "x")
        assert cached == ((whole - 1) // BLOCK * BLOCK if found else 0)


def test_echo_computes_the_whole_prompt(decoder: Core) -> None:
    """Who wants the logprobs of the prompt gets all of them, however much of it is in the cache."""
    asked = [_ask(id, f"Echo. {TALE}", logprobs=0, prompt_logprobs=True) for id in ("one", "two")]
    first, second = (run(decoder, [request])[request.id] for request in asked)
    assert isinstance(first[0], Started)
    assert isinstance(second[0], Started)
    assert len(second[0].prompt_logprobs) == second[0].prompt_tokens
    assert second[0].cached_tokens == 0
    pairs = zip(first[0].prompt_logprobs[1:], second[0].prompt_logprobs[1:], strict=True)
    assert all(abs((one.logprob or 0) - (other.logprob or 0)) < 1e-4 for one, other in pairs)


# --- the tiny model ----------------------------------------------------------------------------------------------


def test_given_up_half_way(tmp_path: Path) -> None:
    """What a cancelled request had computed may be found, no more than it had; its slot is free in the next step."""
    core = load(tiny_llama_safetensors(tmp_path / "m"), cache_bytes=1 << 20, max_sequences=1, step_tokens=10)
    ids = tuple(3 + i % (VOCABULARY - 3) for i in range(CONTEXT - 8))
    greedy = Sampling(max_tokens=5, temperature=0)
    core.add(core.prepare(GenerateRequest(id="gone", prompt_ids=ids, sampling=greedy)))
    core.step()  # four times ten tokens: one block is full
    core.add(core.prepare(GenerateRequest(id="next", prompt_ids=ids, sampling=greedy)))
    core.cancel("gone")
    assert core.health().blocks_used == 0
    outcomes: Outcomes = {"next": []}
    for id, outcome in core.step():
        outcomes[id].append(outcome)
    assert core.health().running == 1
    while core.has_work():
        for id, outcome in core.step():
            outcomes[id].append(outcome)
    assert _told(outcomes, "next") == (len(ids), BLOCK)


# --- blocks alone ------------------------------------------------------------------------------------------------


def test_the_one_held_longest_ago_goes_first() -> None:
    """When blocks are needed, the ends of prefixes go before their beginnings, and old ones before new ones."""
    scheduler, model = Scheduler(blocks=8, max_running=2, step_tokens=64), PagedModel(8)

    def use(token: int, blocks: int) -> int:
        sequence = Sequence([token] * (blocks * BLOCK + 1))
        scheduler.add(sequence)
        while len(sequence.tokens) == blocks * BLOCK + 1:
            step(scheduler, model)
        scheduler.remove(sequence)
        return sequence.found // BLOCK

    assert [use(1, 3), use(2, 3)] == [0, 0]
    assert use(1, 3) == 3, "used again, so that the other is the older one"
    assert use(3, 3) == 0  # takes the two that are free and two of the six that are kept: the end of the second
    assert use(2, 3) == 1  # takes the one that is free and the end of the first
    assert use(1, 3) == 1


def test_the_last_token_is_always_computed() -> None:
    """A prompt of whole blocks that are all there finds all but the last, whose logits choose the next token."""
    scheduler, model = Scheduler(blocks=8, max_running=2, step_tokens=64), PagedModel(8)
    for found in (0, 1):
        sequence = Sequence([1] * 2 * BLOCK)
        scheduler.add(sequence)
        plan, told = step(scheduler, model)
        assert [piece.count for piece in plan] == [(2 - found) * BLOCK]
        assert told == [sequence]
        scheduler.remove(sequence)


@pytest.mark.parametrize("names", [("a", "bc"), ("ab", "c"), ("abc", ""), ("", "abc")])
def test_names_tell_owners_apart(names: tuple[str, str]) -> None:
    """The root is made of both words, each in its place: no two owners share a name, nor do two processes."""
    made, other = Names(), Names()
    found = []
    for owner in (names, ("x", "y")):
        for maker in (made, other):
            blocks: list[bytes] = []
            maker.extend(blocks, [7] * 64, 2, tenant=owner[0], adapter=owner[1])
            found += blocks
    for tenant, adapter in (("a", "bc"), ("ab", "c"), ("abc", ""), ("", "abc")):
        if (tenant, adapter) != names:
            blocks = []
            made.extend(blocks, [7] * 64, 2, tenant=tenant, adapter=adapter)
            found += blocks
    assert len(set(found)) == len(found) == 14


def test_a_name_stands_for_all_that_came_before() -> None:
    """Blocks of the same tokens after different beginnings have different names."""
    made = Names()
    one, other = list[bytes](), list[bytes]()
    made.extend(one, [1] * 32 + [5] * 32, 2, tenant="t", adapter="")
    made.extend(other, [2] * 32 + [5] * 32, 2, tenant="t", adapter="")
    assert not set(one) & set(other)
    again = one[:1]
    made.extend(again, [1] * 32 + [5] * 32, 2, tenant="t", adapter="")
    assert again == one


def test_two_that_compute_the_same_at_once_keep_one() -> None:
    """Of two blocks of one name the first can be found; the other is free again once nobody holds it."""
    blocks = Blocks(4)
    one, other = blocks.take(1), blocks.take(1)
    blocks.name(one[0], b"n")
    blocks.name(other[0], b"n")
    assert blocks.find([b"n"]) == one
    blocks.release(other)
    blocks.release(one)
    assert (blocks.kept, blocks.available) == (1, 4)
    blocks.take(4)
    assert blocks.find([b"n"]) == []
