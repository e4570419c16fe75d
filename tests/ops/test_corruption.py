import itertools
import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from transformer_jax.ops.corruption import corrupt_spans, mask_tokens, span_lengths

pytestmark = pytest.mark.usefixtures("quick_compile")

MASK, VOCABULARY, FIRST_SENTINEL, END = 101, 97, 197, 103
B, T = 5, 29
RATES = [(0.15, 3.0), (0.5, 1.0), (0.37, 2.3), (0.83, 1.1), (0.01, 7.0)]
seeds = st.integers(0, 2**31 - 1)


@st.composite
def padded_tokens(draw: st.DrawFn) -> np.ndarray:
    """`[B, T]` with right padding: rows of 0 to T tokens."""
    lengths = draw(st.lists(st.integers(0, T), min_size=B, max_size=B))
    tokens = np.random.default_rng(draw(seeds)).integers(0, VOCABULARY, (B, T), np.int32)
    return np.where(np.arange(T) < np.array(lengths)[:, None], tokens, -1)


# One program for each rate, however many examples hypothesis draws.
@cache
def masking(rate: float):
    return jax.jit(partial(mask_tokens, rate=rate, mask_token=MASK, vocab_size=VOCABULARY))


@cache
def spans(rate: float, mean_span: float, length: int = T):
    source_length, target_length = span_lengths(length, rate=rate, mean_span=mean_span)
    fields = {"first_sentinel": FIRST_SENTINEL, "end_token": END, "source_length": source_length, "target_length": target_length}
    return jax.jit(partial(corrupt_spans, rate=rate, mean_span=mean_span, **fields))


def published_counts(length: int, rate: float, mean_span: float) -> tuple[int, int]:
    """Noise tokens and spans as the released code has them, in plain numbers; no more spans than kept tokens, without which it fails."""
    noise = min(max(round(length * rate), 1), length - 1)
    return noise, min(max(round(noise / mean_span), 1), length - noise)


def parts(row: np.ndarray) -> list[list[int]]:
    """What stands between the sentinels of a row, which count down from the first, before the end token; behind that there is only padding."""
    body = row.tolist()[: (row >= 0).sum()]
    assert row[len(body) :].tolist() == [-1] * (len(row) - len(body)) and body.pop() == END
    found: list[list[int]] = [[]]
    for token in body:
        if token > END:
            assert token == FIRST_SENTINEL - len(found) + 1
            found.append([])
        else:
            found[-1].append(token)
    return found


@given(tokens=padded_tokens(), seed=seeds, rate=st.sampled_from([0.0, 0.15, 0.8, 1.0]))
def test_a_label_is_the_token_that_was_there_and_the_other_tokens_stay(tokens, seed, rate):
    inputs, labels = map(np.asarray, masking(rate)(jax.random.key(seed), tokens))
    assert inputs.dtype == labels.dtype == tokens.dtype
    chosen = labels >= 0
    np.testing.assert_array_equal(labels, np.where(chosen, tokens, -1))
    np.testing.assert_array_equal(inputs[~chosen], tokens[~chosen])
    assert not chosen[tokens < 0].any()
    assert np.all((inputs[chosen] == MASK) | (inputs[chosen] < VOCABULARY))
    assert rate > 0 or not chosen.any()
    assert rate < 1 or chosen[tokens >= 0].all()


def test_masking_draws_in_the_published_shares():
    tokens = np.full((307, 503), 99, np.int32)  # no ordinary token: what became of each can be told
    inputs, labels = map(np.asarray, masking(0.15)(jax.random.key(0), tokens))
    chosen = labels >= 0
    assert stats.binomtest(int(chosen.sum()), chosen.size, 0.15).pvalue > 1e-3
    noise = inputs[chosen]
    kinds = [(noise == MASK).sum(), (noise < VOCABULARY).sum(), (noise == 99).sum()]
    assert sum(kinds) == len(noise)
    assert stats.chisquare(kinds, len(noise) * np.array([0.8, 0.1, 0.1])).pvalue > 1e-3
    assert stats.chisquare(np.bincount(noise[noise < VOCABULARY], minlength=VOCABULARY)).pvalue > 1e-3
    assert stats.chisquare(chosen.sum(0)).pvalue > 1e-3  # no place is preferred


@pytest.mark.parametrize(("rate", "mean_span"), RATES)
@given(tokens=padded_tokens(), seed=seeds)
def test_source_and_target_together_give_back_the_tokens(rate, mean_span, tokens, seed):
    sources, targets = map(np.asarray, spans(rate, mean_span)(jax.random.key(seed), tokens))
    assert sources.dtype == targets.dtype == tokens.dtype
    for row, source, target in zip(tokens, sources, targets):
        expected = row[row >= 0].tolist()
        if len(expected) == 0:
            assert np.all(source == -1) and np.all(target == -1)
        elif len(expected) == 1:
            assert parts(source) == [expected] and parts(target) == [[], []]
        else:
            (*kept, after), (before, *noise) = parts(source), parts(target)
            assert after == before == []  # kept first, noise last
            assert list(itertools.chain(*itertools.chain(*zip(kept, noise, strict=True)))) == expected
            assert all(kept) and all(noise)
            assert (sum(map(len, noise)), len(noise)) == published_counts(len(expected), rate, mean_span)


def test_all_divisions_into_spans_are_equally_likely():
    """11 tokens: 4 of noise in 3 spans, 7 kept: C(3, 2) * C(6, 2) = 45 divisions."""
    rows, length = 9001, 11
    tokens = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    _, targets = spans(0.4, 1.5, length)(jax.random.key(0), tokens)
    divisions, counts = np.unique(np.asarray(targets), axis=0, return_counts=True)
    assert len(divisions) == math.comb(3, 2) * math.comb(6, 2)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_the_rows_of_a_batch_and_their_parts_are_drawn_apart():
    tokens = np.broadcast_to(np.arange(23, dtype=np.int32), (7, 23))
    _, targets = spans(0.4, 2.0, 23)(jax.random.key(0), tokens)
    assert len(np.unique(np.asarray(targets), axis=0)) == 7


@pytest.mark.parametrize(("length", "expected"), [(568, (512, 114)), (512, (462, 104)), (2, (3, 3)), (1, (3, 3))])
def test_span_lengths_are_the_published_ones(length, expected):
    """568 tokens fill the 512 of T5's inputs, and its targets then have 114 (released code: `random_spans_helper`)."""
    assert span_lengths(length) == expected


@pytest.mark.parametrize(("rate", "mean_span"), RATES)
def test_no_shorter_row_is_longer(rate, mean_span):
    lengths = [span_lengths(n, rate=rate, mean_span=mean_span) for n in range(1, 211)]
    for before, after in itertools.pairwise(lengths):
        assert before[0] <= after[0] and before[1] <= after[1]


def test_longer_results_are_padded_and_otherwise_the_same():
    tokens = np.arange(2 * 23, dtype=np.int32).reshape(2, 23)
    source_length, target_length = span_lengths(23)
    source, target = spans(0.15, 3.0, 23)(jax.random.key(3), tokens)
    longer = partial(corrupt_spans, first_sentinel=FIRST_SENTINEL, end_token=END, source_length=37, target_length=31)
    longer_source, longer_target = jax.jit(longer)(jax.random.key(3), tokens)
    np.testing.assert_array_equal(longer_source, np.pad(source, ((0, 0), (0, 37 - source_length)), constant_values=-1))
    np.testing.assert_array_equal(longer_target, np.pad(target, ((0, 0), (0, 31 - target_length)), constant_values=-1))


@pytest.mark.parametrize("corrupt", [masking(0.15), spans(0.37, 2.3)], ids=["mask_tokens", "corrupt_spans"])
def test_corruption_is_decided_by_the_key_alone_one_by_one_or_together(corrupt):
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (B, T), np.int32)
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.vmap(corrupt, (0, None))(keys, tokens)
    for n, key in enumerate(keys):
        for a, b, c in zip(corrupt(key, tokens), corrupt(key, tokens), together):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(a, c[n])
    assert np.any(np.asarray(together[0][0]) != np.asarray(together[0][1]))


TOKENS = np.zeros((2, 13), np.int32)
LENGTHS = {"source_length": 13, "target_length": 13}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokens": TOKENS.astype(np.uint16)}, TypeError, "tokens: expected signed integers, negative where there is padding, received uint16"),
        ({"tokens": TOKENS.astype(np.float32)}, TypeError, "tokens: expected signed integers, .* received float32"),
        ({"tokens": TOKENS[0]}, ValueError, r"tokens: expected the shape \[B, T\], received \[13\]"),
        ({"rate": 1.01}, ValueError, "rate: expected a share from 0 to 1, received 1.01"),
        ({"rate": float("nan")}, ValueError, "rate: expected a share from 0 to 1, received nan"),
        ({"vocab_size": 0}, ValueError, "vocab_size: expected at least 1, received 0"),
        ({"mask_token": -1}, ValueError, "mask_token: expected a token, 0 or more, received -1"),
    ],
)
def test_masking_refuses_what_cannot_be(change, error, message):
    with pytest.raises(error, match=message):
        mask_tokens(jax.random.key(0), **{"tokens": jnp.asarray(TOKENS), "mask_token": MASK, "vocab_size": VOCABULARY, **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokens": TOKENS.astype(np.uint16)}, TypeError, "tokens: expected signed integers, negative where there is padding, received uint16"),
        ({"tokens": TOKENS[0]}, ValueError, r"tokens: expected the shape \[B, T\], received \[13\]"),
        ({"tokens": TOKENS[:, :0]}, ValueError, "length: expected rows of at least 1 token, received 0"),
        ({"rate": 0.0}, ValueError, "rate: expected a share between 0 and 1, both excluded, received 0.0"),
        ({"rate": 1.0}, ValueError, "rate: expected a share between 0 and 1, both excluded, received 1.0"),
        ({"mean_span": 0.99}, ValueError, "mean_span: expected at least 1 token, received 0.99"),
        ({"mean_span": float("nan")}, ValueError, "mean_span: expected at least 1 token, received nan"),
        ({"source_length": 12}, ValueError, "source_length: expected at least 13 for rows of 13 tokens, received 12; span_lengths gives both"),
        ({"target_length": 3}, ValueError, "target_length: expected at least 4 for rows of 13 tokens, received 3; span_lengths gives both"),
        ({"rate": 0.5, "first_sentinel": 0}, ValueError, "first_sentinel: expected at least 1, for 2 sentinels down to 0, received 0"),
        ({"end_token": -1}, ValueError, "end_token: expected a token, 0 or more, received -1"),
    ],
)
def test_corrupting_spans_refuses_what_cannot_be(change, error, message):
    with pytest.raises(error, match=message):
        corrupt_spans(jax.random.key(0), **{"tokens": jnp.asarray(TOKENS), "first_sentinel": 7, "end_token": 1, **LENGTHS, **change})
