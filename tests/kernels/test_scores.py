"""What each score does to s, T5's buckets, and that scores are values."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import attention, scores
from pallas_kernels.flash.functions import Index
from pallas_kernels.flash.scores import bucket_thresholds

N, T, S = 3, 5, 7
GAP = np.arange(S) - np.arange(T)[:, None]


def applied(score: Any, s: Any, q_positions: Any = np.arange(T), kv_positions: Any = np.arange(S)) -> Any:
    """A score on a tile of one batch row, `s [N, T, S]`; its arrays must have heads leading."""
    q, k = np.asarray(q_positions, np.int32)[:, None], np.asarray(kv_positions, np.int32)
    i = Index(np.int32(0), np.arange(len(s), dtype=np.int32)[:, None, None], q, k, q, k)
    return score(jnp.asarray(s), i)


def t5_bucket(ahead: int, buckets: int, bidirectional: bool, max_distance: int) -> int:
    """The published formula (`_relative_position_bucket` in mesh_tensorflow and T5), in float32, one distance at a time."""
    first = 0
    if bidirectional:
        buckets //= 2
        first = buckets if ahead > 0 else 0
        distance = abs(ahead)
    else:
        distance = max(-ahead, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    f32 = np.float32
    share = f32(np.log(f32(distance) / f32(exact))) / f32(np.log(max_distance / exact))
    return first + min(exact + int(share * f32(buckets - exact)), buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (32, 20), (64, 300), (17, 53), (8, 9), (4, 3), (4, 128), (33, 129), (128, 1000)])
def test_buckets_are_those_of_t5(buckets: int, max_distance: int, bidirectional: bool) -> None:
    ahead = np.arange(-300, 301)
    expected = np.array([t5_bucket(int(a), buckets, bidirectional, max_distance) for a in ahead])
    table = jnp.arange(buckets, dtype="float32")[None]
    score = scores.relative_bias(table, bidirectional=bidirectional, max_distance=max_distance)
    actual = applied(score, np.zeros((1, 1, 601), "float32"), [0], ahead)[0, 0]
    np.testing.assert_array_equal(actual, expected)


def test_buckets_by_hand() -> None:
    """T5's own: 32 buckets up to 128; 16 a direction, 8 exact, then 8 from 8 to 128, a factor of sqrt(2) each; the decoder's 16 exact, 16 from 16 to 128."""
    assert bucket_thresholds(32, True, 128) == (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91)
    geometric = [np.ceil(16 * 8 ** (n / 16) - 1e-9) for n in range(16)]
    assert bucket_thresholds(32, False, 128) == (*range(1, 16), *map(int, geometric))


def test_formulas() -> None:
    rng = np.random.default_rng(0)
    s = 4 * rng.normal(size=(N, T, S)).astype("float32")
    slopes = np.array([0.5, 0.25, 0.1], "float32")
    array = rng.normal(size=(N, T, S)).astype("float32")
    close = partial(np.testing.assert_allclose, rtol=2e-6, atol=2e-6)
    close(applied(scores.softcap(3), s), 3 * np.tanh(s.astype(float) / 3))
    close(applied(scores.alibi(jnp.asarray(slopes)[:, None, None]), s), s - slopes[:, None, None] * abs(GAP))
    close(applied(scores.bias(jnp.asarray(array)), s)[0], s + array)
    close(applied(lambda s, i: s * i.head + i.q, s), s * np.arange(N)[:, None, None] + np.arange(T)[:, None])


def test_in_a_call_each_head_and_batch_row_has_its_own(normal: Any, close: Any) -> None:
    """Through attention with one value per key, the softmax of the scores is visible."""
    s = np.zeros((2, N, T, S))
    slopes, table, array = np.array([0.5, 0.25, 0.1]), np.random.default_rng(1).normal(size=(N, 8)), np.random.default_rng(2).normal(size=(2, N, 1, S))
    places = np.stack([np.random.default_rng(n).permutation(60)[:S] for n in (3, 4)])
    gap = places[:, None, None] - np.arange(T)[:, None]
    buckets = np.vectorize(lambda a: t5_bucket(int(a), 8, False, 30))(gap)
    s = s + array - slopes[:, None, None] * abs(gap) + np.stack([table[n][buckets[:, 0]] for n in range(N)], 1)
    expected = np.exp(2 * np.tanh(s / 2))
    expected /= expected.sum(-1, keepdims=True)
    f32 = partial(jnp.asarray, dtype="float32")
    score = scores.bias(f32(array)), scores.alibi(f32(slopes)), scores.relative_bias(f32(table), False, 30), scores.softcap(2.0)
    zeros, eye = jnp.zeros((2, T, N, 1), "float32"), jnp.broadcast_to(jnp.eye(S, dtype="float32")[:, None], (2, S, 1, S))
    actual = jax.jit(partial(attention, score=score, kv_positions=places))(zeros, jnp.zeros((2, S, 1, 1), "float32"), eye)
    close(actual, expected.transpose(0, 2, 1, 3))


def slope(s: Any, i: Any, a: Any, power: float) -> Any:
    return s + a * jnp.abs(i.q - i.k) ** power


EVERY = {
    "softcap": lambda: scores.softcap(50.0),
    "alibi": lambda: scores.alibi(jnp.array([0.5, 0.25], "float32")),
    "relative_bias": lambda: scores.relative_bias(jnp.ones((2, 8), "float32"), bidirectional=True, max_distance=20),
    "bias": lambda: scores.bias(jnp.ones((3, 3), "float32")),
    "partial": lambda: scores.from_function(partial(slope, power=2), a=(jnp.ones(2, "float32"), "N")),
    "several": lambda: (scores.softcap(50), scores.alibi(jnp.array([0.5, 0.25], "float32"))),
}


@pytest.mark.parametrize("name", EVERY)
def test_made_twice_it_compiles_once(name: str, normal: Any, close: Any) -> None:
    q = normal(2, 3, 2, 2)
    traces: list[Any] = []

    @jax.jit
    def call(score: Any) -> Any:
        traces.append(score)
        return attention(q, q, q, score=score)

    first, second = EVERY[name](), EVERY[name]()
    np.testing.assert_array_equal(call(first), call(second))
    # From numpy, the arrays known before the program runs: the same, and it compiles.
    known = jax.tree.map(np.asarray, first)
    np.testing.assert_array_equal(call(known), call(first))
    assert len(traces) == 1
    close(jax.jit(partial(attention, score=known))(q, q, q), call(first))
    assert hash(first) == hash(second)


def test_equality_is_by_structure_numbers_and_the_same_arrays() -> None:
    assert scores.softcap(50.0) == scores.softcap(50) != scores.softcap(49.0)
    assert len({scores.softcap(50.0), scores.softcap(50), scores.softcap(30)}) == 2
    slopes = jnp.ones(3)
    assert scores.alibi(slopes) == scores.alibi(slopes) != scores.alibi(slopes + 1)
    table = jnp.ones((3, 8))
    same = scores.relative_bias(table, True, 20)
    assert same == scores.relative_bias(table, True, 20)
    assert same != scores.relative_bias(table, True, 200) and same != scores.relative_bias(table, False, 20)
    assert scores.from_function(partial(slope, power=2), a=(slopes, "N")) == scores.from_function(partial(slope, power=2), a=(slopes, "N"))
    assert scores.from_function(partial(slope, power=2), a=(slopes, "N")) != scores.from_function(partial(slope, power=3), a=(slopes, "N"))
    assert scores.from_function(lambda s, i: s) != scores.from_function(lambda s, i: s)
    with pytest.raises(AttributeError):
        scores.softcap(2.0).function = None  # type: ignore[misc, assignment]


def test_prints_as_it_was_made() -> None:
    assert repr(scores.softcap(3)) == "softcap(cap=3.0)"
    assert repr(scores.alibi(np.ones(5, "float32"))) == "alibi(slope=(float32[5], 'N'))"


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: scores.softcap(0), ValueError, "softcap: cap: expected a number above 0, received 0"),
        (lambda: scores.softcap(-2.0), ValueError, "softcap: cap: expected a number above 0, received -2.0"),
        (lambda: scores.softcap(float("nan")), ValueError, "softcap: cap: expected a number above 0, received nan"),
        (lambda: scores.alibi(0.5), ValueError, r"slope: axes 'N' need 1 dimensions, received shape \(\)"),
        (lambda: scores.relative_bias(np.ones(8), True, 20), ValueError, r"relative_bias: table: expected shape \[N, buckets\], received \(8,\)"),
        (lambda: scores.relative_bias(np.ones((2, 3)), True, 20), ValueError, "at least 2 buckets in each direction .* received 3 buckets, bidirectional=True"),
        (lambda: scores.relative_bias(np.ones((2, 32)), True, 8), ValueError, "max_distance above 8, received 32 buckets, .* max_distance=8"),
        (lambda: scores.bias(np.ones((1, 1, 1, 2, 2))), ValueError, r"broadcastable to \[B, N, T, S\] .* received shape \(1, 1, 1, 2, 2\)"),
        (lambda: scores.from_function(3), TypeError, "fn: expected a function of a tile, received int"),
    ],
)
def test_refuses(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    ("score", "error", "words"),
    [
        (lambda s, i: s > 0, TypeError, "score <lambda>: expected a result of float32, received bool"),
        (lambda s, i: s.astype("bfloat16"), TypeError, "expected a result of float32, received bfloat16"),
        (lambda s, i: s[..., None], ValueError, r"expected a result of the tile's shape, received \(1, 1, 1, 1, 1\)"),
        (lambda s, i: (s, s), ValueError, "expected one array, received 2"),
        (scores.alibi(np.ones(3, "float32")), ValueError, r"alibi: slope: axes 'N' expect N = 2 or 1, received 3 in shape \(3,\)"),
        (scores.bias(np.ones((4, 4), "float32")), ValueError, "bias: array: axes 'BNTS' expect T = 3 or 1, received 4"),
    ],
)
def test_a_score_that_does_not_fit_the_call_is_refused(score: Any, error: type[Exception], words: str, normal: Any) -> None:
    q = normal(1, 3, 2, 2)
    with pytest.raises(error, match=words):
        attention(q, q, q, score=score)
