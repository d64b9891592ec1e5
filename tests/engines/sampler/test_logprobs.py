"""Logprobs of the raw distribution, beside sampling and for prompts."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from interlace.engines.local.logprobs import largest
from interlace.engines.local.sampler import SamplerState, prompt_logprobs, sample
from interlace.engines.types import Sampling
from interlace.errors import EngineFailed

V = 1000


def logits(rows, seed=0):
    """Random logits, [rows, V] float32."""
    return (np.random.default_rng(seed).normal(size=(rows, V)) * 4 + 30).astype(np.float32)


def log_softmax(x):
    """In float64, the plain way."""
    x = x.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def test_logprobs_are_of_the_raw_distribution():
    """Whatever penalty, bias, mask, temperature and filter chose the token, its logprob is the model's own."""
    x = logits(4)
    expected = log_softmax(x)
    mask = np.full(32, 0x55555555, dtype=np.int32)
    settings = [
        Sampling(temperature=0.0, logprobs=0),
        Sampling(temperature=1.7, top_p=0.5, logprobs=5, seed=1),
        Sampling(logit_bias={12: 100.0}, logprobs=20, seed=1),
        Sampling(repetition_penalty=2.0, presence_penalty=2.0, temperature=0.3, logprobs=3, seed=1),
    ]
    states = [SamplerState.create(sampling, V, [1, 2, 3], 0) for sampling in settings]
    for result, row, sampling in zip(sample(x, states, [None, None, None, mask]), expected, settings, strict=True):
        assert abs(result.logprob - row[result.id]) < 1e-5
        order = np.argsort(-row, kind="stable")[: sampling.logprobs]
        assert [token for token, _ in result.top] == order.tolist()
        np.testing.assert_allclose([value for _, value in result.top], row[order], atol=1e-5)


def test_logprobs_come_only_where_asked_for():
    """Without `logprobs` nothing is computed; with 0 only the chosen token's."""
    states = [SamplerState.create(Sampling(logprobs=k, seed=1), V, [], 0) for k in (None, 0)]
    without, chosen = sample(logits(2), states, [None, None])
    assert (without.logprob, without.top) == (None, ())
    assert chosen.logprob is not None
    assert chosen.top == ()


@given(values=st.lists(st.integers(-5, 5), min_size=1, max_size=60), k=st.integers(0, 70))
def test_the_largest_come_in_order_with_ties_by_id(values, k):
    """As sorting everything would give; more than there are gives all."""
    row = np.array(values, dtype=np.float32)
    assert largest(row, k).tolist() == sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]


def test_prompt_logprobs_are_those_of_the_tokens_that_follow():
    """Each row tells of its actual next token; a broken row is an error in its own place."""
    x = logits(6)
    expected = log_softmax(x)
    x[4, 9] = np.nan
    following = [5, 0, 999, 7, 1, 2]
    results = prompt_logprobs(x, following, 2)
    assert isinstance(results.pop(4), EngineFailed)
    rows = [0, 1, 2, 3, 5]
    assert [result.id for result in results] == [following[row] for row in rows]
    np.testing.assert_allclose([r.logprob for r in results], [expected[row, following[row]] for row in rows], atol=1e-5)
    assert [r.top[0][0] for r in results] == [int(expected[row].argmax()) for row in rows]
