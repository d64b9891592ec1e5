"""Choosing tokens: order of operations, seeds, masks, penalties, and rows that must not meet."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.engines.local.logit_edits import TokenCounts
from interlace.engines.local.sampler import Sampled, SamplerState, check_sampling, sample
from interlace.engines.types import Sampling
from interlace.errors import EngineFailed, InvalidRequest

V = 700


def state(prompt=(), choice=0, vocabulary=V, **sampling):
    """A sampler state for `Sampling(**sampling)`."""
    return SamplerState.create(Sampling(**sampling), vocabulary, prompt, choice)


def logits(rows, seed=0, spread=3.0, vocabulary=V):
    """Random logits, [rows, vocabulary] float32."""
    return (np.random.default_rng(seed).normal(size=(rows, vocabulary)) * spread).astype(np.float32)


def mask_of(allowed, vocabulary=V):
    """The packed mask that allows `allowed`."""
    bits = np.zeros(-(-vocabulary // 32) * 32, dtype=np.uint8)
    bits[list(allowed)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def ids(results):
    """The chosen ids; fails on an error."""
    assert all(isinstance(result, Sampled) for result in results), results
    return [result.id for result in results]


def test_greedy_takes_the_largest_and_ties_go_to_the_lowest_id():
    """Temperature 0 is argmax, deterministic among equals."""
    x = np.zeros((2, V), dtype=np.float32)
    x[0, [5, 9]] = 2.0
    assert ids(sample(x, [state(temperature=0.0)] * 2, [None, None])) == [5, 0]


@pytest.mark.parametrize("sampling", [{"temperature": 1e-6}, {"top_p": 0.0}, {"min_p": 1.0}, {"top_k": 1}])
def test_degenerate_settings_take_the_most_likely(sampling):
    """A tiny temperature, top_p 0, min_p 1 and top_k 1 all leave only the most likely token."""
    x = logits(20)
    states = [state(seed=n, **sampling) for n in range(20)]
    assert ids(sample(x, states, [None] * 20)) == x.argmax(axis=1).tolist()


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 2.0, 1e300])
def test_extreme_temperatures_never_draw_a_masked_token(temperature):
    """However temperature is scaled in float32, what a mask forbids stays forbidden and nothing becomes NaN."""
    results = sample(logits(30), [state(temperature=temperature, seed=n) for n in range(30)], [mask_of({3, 640})] * 30)
    assert set(ids(results)) <= {3, 640}


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"seed": 1, "logprobs": 2}])
def test_a_vocabulary_of_one_token(settings):
    """With one token there is one choice, of logprob 0."""
    (result,) = sample(np.zeros((1, 1), np.float32), [state(vocabulary=1, **settings)], [None])
    assert result.id == 0
    assert result.logprob in {None, 0.0}


def test_draws_follow_the_distribution():
    """20,000 seeded draws pass a chi-square test against the softmax at that temperature."""
    x = np.random.default_rng(5).normal(size=12).astype(np.float32)
    draws, batch = 20_000, 500
    states = [state(vocabulary=12, seed=n, temperature=1.5) for n in range(batch)]
    tiled = np.tile(x, (batch, 1))
    seen = np.bincount(
        [token for _ in range(draws // batch) for token in ids(sample(tiled, states, [None] * batch))], minlength=12
    )
    expected = draws * np.exp(x / 1.5) / np.exp(x / 1.5).sum()
    chi_square = float(((seen - expected) ** 2 / expected).sum())
    assert chi_square < 31.3  # the 0.1 % tail of 11 degrees of freedom


MIXED = [
    {"temperature": 0.0},
    {"seed": 1},
    {"seed": 2, "top_p": 0.8, "temperature": 1.3},
    {"seed": 3, "top_k": 20, "min_p": 0.01},
    {"seed": 4, "repetition_penalty": 1.3, "frequency_penalty": 0.7, "logprobs": 3},
    {"seed": 5, "logit_bias": {4: 5.0, 9: -100.0}},
]


def generate(settings, steps, strangers=0):
    """The tokens of one sequence over `steps` steps, with `strangers` odd rows around it in each batch."""
    own = state(prompt=(1, 2, 3), **settings)
    others = [state(seed=n, top_p=0.5, logprobs=2) for n in range(strangers)]
    chosen = []
    for step in range(steps):
        x = np.concatenate([logits(strangers, seed=1000 + step), logits(1, seed=step)])
        if strangers:
            x[0, :] = np.nan
        results = sample(x, [*others, own], [None] * (strangers + 1))
        chosen += ids(results[-1:])
        own.observe(chosen[-1])
    return chosen


@pytest.mark.parametrize("settings", MIXED)
def test_a_seed_gives_the_same_tokens_in_any_batch(settings):
    """Alone, or last of eight rows of which one is broken: the tokens are equal."""
    assert generate(settings, steps=12) == generate(settings, steps=12, strangers=7)


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.9}, {"temperature": 1.3}])
def test_the_last_bits_of_the_logits_do_not_change_the_tokens(settings):
    """Noise as between batched and single products of four-bit weights leaves a thousand seeded tokens alone."""
    noise = np.random.default_rng(4)
    for batch in range(20):
        x = logits(50, spread=3.0, seed=batch, vocabulary=49_152)
        nudged = x * np.float32(1 + 1e-5) + noise.normal(size=x.shape).astype(np.float32) * np.float32(1e-5)
        first, second = (
            ids(sample(rows, [state(seed=n, vocabulary=49_152, **settings) for n in range(50)], [None] * 50))
            for rows in (x, nudged)
        )
        assert first == second


def test_choices_seeds_and_fresh_entropy_differ():
    """Each choice of one seed has its own draws; without a seed, each request has."""

    def tokens(make):
        x = np.zeros((40, V), dtype=np.float32)
        one = make()
        return [ids(sample(x[:1], [one], [None]))[0] for _ in range(12)]

    seeded = [tokens(lambda c=c: state(seed=9, choice=c)) for c in (0, 1)]
    assert seeded[0] != seeded[1]
    assert tokens(lambda: state(seed=9)) == seeded[0]
    assert tokens(state) != tokens(state)
    assert tokens(lambda: state(seed=-9)) == tokens(lambda: state(seed=-9))


def test_a_broken_row_fails_alone():
    """NaN, +inf or nothing finite in one row is an `EngineFailed` there; the neighbours get what they get alone."""
    x = logits(5)
    alone = ids(sample(x, [state(seed=1) for _ in range(5)], [None] * 5))
    x[1, 600], x[2, 3], x[3, :] = np.nan, np.inf, -np.inf
    results = sample(x, [state(seed=1) for _ in range(5)], [None] * 5)
    assert [isinstance(result, EngineFailed) for result in results] == [False, True, True, True, False]
    assert [results[0].id, results[4].id] == [alone[0], alone[4]]


@given(allowed=st.sets(st.integers(0, V - 1), min_size=1), temperature=st.sampled_from([0.0, 1.0]))
def test_only_allowed_tokens_are_chosen(allowed, temperature):
    """A mask holds, also against a bias of 100 on a forbidden token; greedy takes the best of what is allowed."""
    x = logits(1)
    bias = {token: 100.0 for token in (0, V - 1) if token not in allowed}
    (token,) = ids(sample(x, [state(temperature=temperature, logit_bias=bias)], [mask_of(allowed)]))
    assert token in allowed
    if temperature == 0.0:
        assert token == max(sorted(allowed), key=lambda t: x[0, t])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_mask_that_allows_nothing_is_an_error_of_its_row(temperature):
    """An exhausted grammar yields an error rather than some forbidden token."""
    results = sample(logits(2), [state(temperature=temperature)] * 2, [mask_of(()), None])
    assert isinstance(results[0], EngineFailed)
    assert isinstance(results[1], Sampled)


def test_tokens_past_a_short_mask_are_forbidden():
    """Logits padded beyond the tokenizer's vocabulary are never chosen under a mask."""
    x = logits(1)
    x[0, 699] = 50.0
    short = mask_of(range(640), vocabulary=640)
    assert ids(sample(x, [state(temperature=0.0)], [short])) == [int(x[0, :640].argmax())]


def test_a_bias_of_100_decides():
    """+100 makes a token certain and -100 makes it impossible, greedy or drawn."""
    x = logits(1)
    best = int(x.argmax())
    for temperature in (0.0, 1.0):
        assert ids(sample(x, [state(temperature=temperature, logit_bias={17: 100.0})], [None])) == [17]
        assert ids(sample(x, [state(temperature=temperature, logit_bias={best: -100.0})], [None])) != [best]


def test_the_given_logits_are_left_as_they_are():
    """Logits may be the engine's own buffer: nothing writes on them (and the rows here are read only)."""
    x = logits(len(MIXED))
    x.setflags(write=False)
    ids(sample(x, [state(prompt=(1,), **settings) for settings in MIXED], [mask_of({1, 2, 5})] * len(MIXED)))


@given(
    prompt=st.lists(st.integers(0, V - 1), max_size=150),
    output=st.lists(st.integers(0, V - 1), max_size=150),
    repetition=st.sampled_from([1.0, 0.7, 1.3]),
    presence=st.sampled_from([0.0, 0.5, -2.0]),
    frequency=st.sampled_from([0.0, 0.25, 2.0]),
)
def test_penalties_equal_their_definition(prompt, output, repetition, presence, frequency):
    """Repetition counts prompt and output, presence and frequency the output alone, and then the bias is added."""
    sequence = state(
        prompt,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias={7: 2.5},
    )
    for token in output:
        sequence.observe(token)
    row = logits(1)[0]
    expected = row.astype(np.float64)
    for token in {*prompt, *output}:
        expected[token] = expected[token] / repetition if expected[token] > 0 else expected[token] * repetition
    for token in set(output):
        expected[token] -= presence + frequency * output.count(token)
    expected[7] += 2.5
    sequence.edit(row)
    np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-5)


def test_the_repetition_penalty_equals_that_of_transformers():
    """The same scores as transformers' processor over prompt and output."""
    torch = pytest.importorskip("torch")
    from transformers import RepetitionPenaltyLogitsProcessor

    prompt, output = [3, 5, 5, 600], [8, 3, 8]
    sequence = state(prompt, repetition_penalty=1.7)
    for token in output:
        sequence.observe(token)
    x = logits(1)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt + output]), torch.tensor(x.copy()))
    sequence.edit(x[0])
    np.testing.assert_allclose(x, expected.numpy(), rtol=1e-6)


def test_no_penalty_keeps_no_counts():
    """Without a penalty a sequence pays for none."""
    plain = state(prompt=(1, 2))
    plain.observe(3)
    assert plain.tokens is None
    assert state(prompt=(1, 2), presence_penalty=0.1).tokens.ids.size == 0


@given(st.lists(st.integers(0, 500)))
def test_token_counts_grow_with_the_sequence(output):
    """Every distinct token has one slot and the right count, however many come."""
    counts = TokenCounts([2, 2, 1])
    for token in output:
        counts.add(token)
    found = dict(zip(counts.ids.tolist(), counts.counts.tolist(), strict=True))
    assert found == {token: output.count(token) for token in {1, 2, *output}}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("top_k", -2),
        ("min_p", -0.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("presence_penalty", 2.5),
        ("frequency_penalty", math.nan),
        ("logprobs", -1),
        ("logit_bias", {3: math.nan}),
        ("logit_bias", {3: 101.0}),
        ("logit_bias", {V: 1.0}),
        ("logit_bias", {-1: 1.0}),
    ],
)
def test_a_value_that_cannot_be_sampled_with_is_refused_by_name(field, value):
    """Bad numbers are the caller's fault, found before any step, with the field named."""
    with pytest.raises(InvalidRequest) as caught:
        check_sampling(Sampling(**{field: value}), V)
    assert caught.value.param == field
    assert field in caught.value.message


def test_a_prompt_outside_the_vocabulary_is_refused_where_it_would_be_counted():
    """A wild prompt id cannot reach the penalty's arrays."""
    with pytest.raises(InvalidRequest, match="699"):
        state(prompt=(V,), repetition_penalty=1.1)
