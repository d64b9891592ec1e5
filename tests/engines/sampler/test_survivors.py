"""Which tokens survive the filters, and the draw, against a slow reference in float64."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from interlace.engines.local.survivors import BLOCK, draw, fill_weights, scratch_for

# Quarter steps make ties common and keep different logits far enough apart for float32.
LOGITS = st.lists(st.integers(-60, 60).map(lambda n: n / 4), min_size=1, max_size=40)
TINY = 1e-30  # smaller shares may vanish in float32
CLEAR = 1e-5  # closer to a border than this, float32 and float64 may rightly disagree


def weights_of(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """What `fill_weights` leaves of `logits`: (scratch, the weights)."""
    row = np.asarray(logits, dtype=np.float32)
    scratch = scratch_for(row.size)
    with np.errstate(over="ignore", under="ignore"):
        fill_weights(scratch, row, float(row.max()), temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    return scratch, scratch[: row.size]


def reference(logits, temperature, top_k, top_p, min_p):
    """The probabilities after temperature, top_k, top_p and min_p, in that order: sorted, in float64, obviously."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    order = sorted(range(len(logits)), key=lambda token: (-weights[token], token))
    if top_k > 0:
        order = order[:top_k]
    probabilities = weights[order] / weights[order].sum()
    before = np.concatenate([[0.0], np.cumsum(probabilities)[:-1]])
    assume(top_p in {0.0, 1.0} or np.abs(before - top_p).min() > CLEAR)
    assume(min_p in {0.0, 1.0} or np.abs(weights - min_p).min() > CLEAR)
    kept = [
        token
        for place, token in enumerate(order)
        if (top_p == 1.0 or place == 0 or before[place] < top_p) and weights[token] >= min_p
    ]
    result = np.zeros(len(logits))
    result[kept] = weights[kept] / weights[kept].sum()
    return result


@given(
    logits=LOGITS,
    temperature=st.sampled_from([1e-6, 0.3, 1.0, 2.0, 7.0]),
    top_k=st.integers(0, 50),
    top_p=st.one_of(st.just(1.0), st.just(0.0), st.floats(0.0, 0.9999)),
    min_p=st.one_of(st.just(0.0), st.just(1.0), st.floats(0.0, 1.0)),
)
def test_survivors_equal_the_sorted_reference(logits, temperature, top_k, top_p, min_p):
    """The same tokens survive as in the reference, with the same probabilities, whatever is switched on."""
    expected = reference(logits, temperature, top_k, top_p, min_p)
    _, weights = weights_of(logits, temperature, top_k, top_p, min_p)
    share = weights / weights.sum()
    assert np.flatnonzero(share > TINY).tolist() == np.flatnonzero(expected > TINY).tolist()
    np.testing.assert_allclose(share, expected, atol=1e-6)


@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0, 6.0])
@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
def test_top_p_narrows_exactly_in_a_large_vocabulary(spread, top_p):
    """Over 49,152 tokens, flat to peaked, narrowing before the sort loses and adds nothing."""
    logits = (np.random.default_rng(7).normal(size=49_152) * spread).astype(np.float32)
    _, weights = weights_of(logits, top_p=top_p)
    _, everything = weights_of(logits)
    order = np.argsort(-everything, kind="stable")
    cumulative = np.cumsum(everything[order], dtype=np.float64)
    count = int(np.searchsorted(cumulative, top_p * cumulative[-1])) + 1
    assert abs(np.count_nonzero(weights) - count) <= 1  # the two sums differ in their last bits
    assert set(np.flatnonzero(weights)) <= set(order[: count + 1])


@pytest.mark.parametrize("top_k", [1, 50, 1000, 49_152, 60_000])
def test_top_k_keeps_exactly_k(top_k):
    """Ties at the border go to the lower ids, also among thousands of equal values; k may exceed the vocabulary."""
    logits = np.random.default_rng(3).integers(0, 40, size=49_152)
    _, weights = weights_of(logits, top_k=top_k)
    order = np.argsort(-logits, kind="stable")[:top_k]
    assert sorted(order.tolist()) == np.flatnonzero(weights).tolist()


def test_top_k_beyond_what_a_mask_leaves_keeps_the_rest():
    """Where a mask left fewer tokens than top_k, those survive and nothing masked comes back."""
    logits = np.full(600, -np.inf)
    logits[[3, 300]] = [1.0, 2.0]
    _, weights = weights_of(logits, top_k=50, top_p=0.99)
    assert np.flatnonzero(weights).tolist() == [3, 300]


def test_the_draw_follows_the_weights_within_and_across_blocks():
    """30,000 draws pass a chi-square test against the weights, over blocks of very different sums."""
    rng = np.random.default_rng(17)
    tokens = np.array([0, 1, BLOCK - 1, BLOCK, BLOCK + 7, 2 * BLOCK + 3, 2 * BLOCK + 4, 2 * BLOCK + 5, 4 * BLOCK + 1])
    logits = np.full(5 * BLOCK, -np.inf)
    logits[tokens] = [0.0, -1.0, -3.0, -0.5, -2.0, -4.0, -4.0, -3.5, 0.3]
    scratch, weights = weights_of(logits)
    draws = 30_000
    seen = np.bincount([draw(scratch, rng) for _ in range(draws)], minlength=logits.size)[tokens]
    assert seen.sum() == draws, "what weighs nothing is never drawn"
    expected = draws * weights[tokens] / weights[tokens].sum()
    assert float(((seen - expected) ** 2 / expected).sum()) < 26.1  # the 0.1 % tail of 8 degrees of freedom


class _Same:
    """A generator that says one and the same time for ever."""

    def __init__(self, time):
        self.time = time

    def standard_exponential(self, size):
        return np.full(size, self.time)


@pytest.mark.parametrize("time", [0.0, 5e-324, 1.0, 50.0])
def test_odd_times_draw_a_survivor(time):
    """Not even times of zero draw a padded or excluded token; equal times draw the heaviest."""
    logits = np.full(3 * BLOCK + 5, -np.inf)
    logits[[10, BLOCK + 1]] = [-80.0, 0.0]
    scratch, _ = weights_of(logits)
    assert draw(scratch, _Same(time)) == BLOCK + 1


def test_a_draw_takes_as_many_numbers_whatever_the_weights():
    """Or one step's last bits would change all later draws of its sequence."""
    after = set()
    for spread in (0.0, 1.0, 30.0):
        rng = np.random.default_rng(1)
        draw(weights_of(np.linspace(-spread, spread, 3 * BLOCK))[0], rng)
        after.add(rng.random())
    assert len(after) == 1


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({"top_k": 40}, ["TopK"]),
        ({"top_p": 0.8}, ["TopP"]),
        ({"min_p": 0.02}, ["MinP"]),
        ({"top_k": 60, "top_p": 0.7, "min_p": 0.05}, ["TopK", "TopP", "MinP"]),
    ],
)
def test_survivors_equal_those_of_transformers(filters, names):
    """The filters, alone and together, keep what transformers' own warpers keep, in its order of application."""
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process

    logits = (np.random.default_rng(11).normal(size=(20, 1000)) * 3).astype(np.float32)
    values = dict(zip(("TopK", "TopP", "MinP"), (filters.get(f) for f in ("top_k", "top_p", "min_p")), strict=True))
    scores = torch.tensor(logits) / 0.8
    for name in names:
        scores = getattr(logits_process, f"{name}LogitsWarper")(values[name])(None, scores)
    for row, expected in zip(logits, torch.softmax(scores, -1).numpy(), strict=True):
        _, weights = weights_of(row, temperature=0.8, **filters)
        np.testing.assert_allclose(weights / weights.sum(), expected, atol=1e-6)
