"""Arrays of masks and scores by their signatures, `lookup`, and what of a function is refused."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pallas_kernels import attention, lookup, masks, scores
from pallas_kernels.flash.functions import AXES, Index

SIZES = {"B": 2, "N": 6, "T": 5, "S": 7}
B, N, T, S = SIZES.values()
SIGNATURES = ["".join(axes) for n in range(5) for axes in itertools.combinations(AXES, n)]
FEATURES = 3


def full(array: Any, signature: str) -> Any:
    """An array as `[B|1, N|1, T|1, S|1, features]`."""
    shape = [1] * 4
    for axis, length in zip(signature, array.shape, strict=False):
        shape[AXES.index(axis)] = length
    return np.asarray(array).reshape(*shape, *array.shape[len(signature) :])


@pytest.fixture(scope="module")
def given_arrays(normal: Any) -> dict[str, tuple[Any, str]]:
    """One for every signature, all axes full; and one for each of those with every other axis 1."""
    arrays = {}
    for n, signature in enumerate(SIGNATURES):
        lengths = [SIZES[axis] for axis in signature]
        arrays[f"full_{signature}"] = normal(*lengths, FEATURES, seed=n), signature
        arrays[f"ones_{signature}"] = normal(*(1 if axis in "BT" else SIZES[axis] for axis in signature), FEATURES, seed=n + 50), signature
    return arrays


def call_arrays(normal: Any) -> tuple[Any, Any, Any]:
    return normal(B, T, N, 3), normal(B, S, 2, 3, seed=1), normal(B, S, 2, 4, seed=2)


def test_scores_read_arrays_of_every_signature_and_each_gets_its_gradient(given_arrays: Any, normal: Any, oracle: Any, close: Any) -> None:
    q, k, v = call_arrays(normal)
    signatures = {name: signature for name, (_, signature) in given_arrays.items()}
    arrays = {name: array for name, (array, _) in given_arrays.items()}

    def summed(s: Any, i: Any, **arrays: Any) -> Any:
        which = (2 * i.k + i.q + i.head) % FEATURES
        return s + 0.1 * sum(lookup(array, which) + array[..., 0] * array[..., 1] for array in arrays.values())

    def call(arrays: Any) -> Any:
        return attention(q, k, v, score=scores.from_function(summed, **{name: (array, signatures[name]) for name, array in arrays.items()}))

    o, gradients = jax.jit(lambda arrays, do: (call(arrays), jax.vjp(call, arrays)[1](do)[0]))(arrays, q[..., :1] * np.arange(1.0, 5, dtype="float32"))
    which = (2 * np.arange(S) + np.arange(T)[:, None] + np.arange(N)[:, None, None])[None] % FEATURES
    picked = np.eye(FEATURES)[which]  # [1, N, T, S, features]
    placed = {name: full(array, signatures[name]).astype(float) for name, array in arrays.items()}
    expected = oracle(q, k, v, score=lambda s: (s + 0.1 * sum((a * picked).sum(-1) + a[..., 0] * a[..., 1] for a in placed.values()), 1.0))
    close(o, expected.o)
    g = 0.1 * expected.gradients(np.asarray(q)[..., :1] * np.arange(1, 5), np.zeros((B, N, T))).score[..., None]
    for name, a in placed.items():
        swapped = np.concatenate([a[..., 1:2], a[..., :1], 0 * a[..., 2:]], -1)
        over = tuple(n for n in range(4) if a.shape[n] == 1)
        close(gradients[name], (g * (picked + swapped)).sum(over).reshape(arrays[name].shape), times=3)


@pytest.mark.parametrize("backend", ["reference", "blockwise"])
def test_masks_read_arrays_of_every_signature(backend: str, given_arrays: Any, normal: Any, oracle: Any, close: Any) -> None:
    q, k, v = call_arrays(normal)

    def positive(i: Any, **arrays: Any) -> Any:
        return sum(lookup(array, (i.k + i.q) % FEATURES) for array in arrays.values()) > 0

    picked = np.eye(FEATURES)[(np.arange(S) + np.arange(T)[:, None]) % FEATURES]
    total = sum(full(array, signature).astype(float) * picked for array, signature in given_arrays.values())
    o = jax.jit(partial(attention, backend=backend))(q, k, v, mask=masks.from_function(positive, **given_arrays))
    close(o, oracle(q, k, v, allowed=total.sum(-1) > 0).o)


def test_fields_of_the_index(normal: Any) -> None:
    """batch, head, positions and places, all int32, under x64 too."""
    seen: dict[str, Any] = {}

    def look(i: Any) -> Any:
        seen.update(i._asdict())
        return i.k == i.q

    def call() -> None:
        q, k, v = call_arrays(normal)
        jax.eval_shape(partial(attention, mask=look, q_positions=np.arange(T) + 10, kv_positions=np.arange(B * S).reshape(B, S), backend="reference"), q, k, v)

    for x64 in (False, True):
        with jax.enable_x64(x64):
            call()
        assert {a.dtype for a in seen.values()} == {np.dtype("int32")}
        actual = np.broadcast_arrays(*(np.asarray(seen[name]) for name in Index._fields))
        b, n, t, s = np.indices((B, N, T, S))
        for a, expected in zip(actual, (b, n, t + 10, b * S + s, t, s), strict=True):
            np.testing.assert_array_equal(a, expected)


@given(st.data())
def test_lookup_picks_along_the_last_axis(data: Any) -> None:
    """Any axes of the array full or 1, an index of any shape that broadcasts; beyond the ends, the nearest end."""
    draw = data.draw
    sizes = [2, 3, 2, 3]
    lead = [n if draw(st.booleans()) else 1 for n in sizes][draw(st.integers(0, 4)) :]
    shape = [n if draw(st.booleans()) else 1 for n in sizes][draw(st.integers(0, 4)) :]
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    array, index = rng.normal(size=(*lead, 5)).astype("float32"), rng.integers(-3, 9, shape)
    together = np.broadcast_shapes(tuple(lead), tuple(shape))
    clipped = np.broadcast_to(np.clip(index, 0, 4), together)
    expected = np.take_along_axis(np.broadcast_to(array, (*together, 5)), clipped[..., None], -1)[..., 0]
    np.testing.assert_array_equal(jax.jit(lookup)(array, index.astype("int32")), expected)


@pytest.mark.parametrize("lead", [(), (1, 1, 1, 1), (1, 3, 1, 1), (2, 1, 4, 1), (2, 3, 4, 5)])
def test_the_gradient_of_lookup_is_a_sum_by_index(lead: tuple[int, ...], normal: Any, close: Any) -> None:
    array, g = normal(*lead, 6), normal(2, 3, 4, 5, seed=1)
    index = np.random.default_rng(2).integers(-1, 7, (1, 3, 4, 5)).astype("int32")
    actual = jax.jit(jax.grad(lambda array: (lookup(array, index) * g).sum()))(array)
    hot = np.eye(6)[np.clip(index, 0, 5)] * np.asarray(g, float)[..., None]
    whole = (1,) * (4 - len(lead)) + lead
    close(actual, hot.sum(tuple(n for n in range(4) if whole[n] == 1), keepdims=True).reshape((*lead, 6)))


def test_lookup_under_vmap_of_the_table_and_of_the_index(normal: Any) -> None:
    tables, index = normal(4, 3, 1, 7), np.random.default_rng(0).integers(0, 7, (4, 3, 2)).astype("int32")
    both = jax.jit(jax.vmap(lookup))(tables, index)
    one = jax.jit(lookup)
    np.testing.assert_array_equal(both, np.stack([one(t, i) for t, i in zip(tables, index, strict=True)]))
    np.testing.assert_array_equal(jax.jit(jax.vmap(lookup, (0, None)))(tables, index[0])[2], one(tables[2], index[0]))


def score_of(fn: Callable[..., Any], **arrays: Any) -> Any:
    q = np.ones((B, T, N, 1), "float32") * np.arange(T, dtype="float32")[:, None, None]
    return jax.jit(partial(attention, score=scores.from_function(fn, **arrays)))(q, q, q)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ((np.zeros((N, B), "float32"), "NB"), ValueError, "plus: a: expected axes out of 'BNTS', in that order, each once, received 'NB'"),
        ((np.zeros((N, N), "float32"), "NN"), ValueError, "plus: a: expected axes out of 'BNTS', in that order, each once, received 'NN'"),
        ((np.zeros(N, "float32"), "K"), ValueError, "plus: a: expected axes out of 'BNTS', .* received 'K'"),
        ((np.zeros(N, "float32"), "n"), ValueError, "plus: a: expected axes out of 'BNTS', .* received 'n'"),
        ((np.zeros(N, "float32"), "BN"), ValueError, r"plus: a: axes 'BN' need 2 dimensions, received shape \(6,\)"),
        ((np.zeros(B, "float32"), "N"), ValueError, r"plus: a: axes 'N' expect N = 6 or 1, received 2 in shape \(2,\)"),
        ((np.zeros((B, 4), "float32"), "BT"), ValueError, r"plus: a: axes 'BT' expect T = 5 or 1, received 4 in shape \(2, 4\)"),
        (np.zeros(N, "float32"), TypeError, r"plus: a: expected a pair of an array and its axes, such as \(array, 'BT'\), received ndarray"),
        ((np.zeros(N, "float32"),), TypeError, "plus: a: expected a pair of an array and its axes, .* received tuple"),
        (("N", np.zeros(N, "float32")), TypeError, "plus: a: expected a pair of an array and its axes, .* received tuple"),
    ],
)
def test_arrays_and_signatures_that_do_not_fit_are_refused(given: Any, error: type[Exception], words: str) -> None:
    def plus(s: Any, i: Any, a: Any) -> Any:
        return s + a

    with pytest.raises(error, match=words):
        score_of(plus, a=given)


HOST, DEVICE = np.linspace(0, 1, 4, dtype="float32"), jnp.linspace(0, 1, 4, dtype="float32")
OUTSIDE: dict[str, Callable[..., Any]] = {
    "jnp": lambda s, i: s * DEVICE[i.head % 4],
    "numpy": lambda s, i: s * jnp.asarray(HOST)[i.head % 4],
    "numpy constant": lambda s, i: s + HOST[:1],
    "made inside": lambda s, i: s * lookup(np.arange(3, dtype="float32"), i.k),
    "in a condition": lambda s, i: jax.lax.cond(True, lambda s: s * DEVICE[1], lambda s: s, s),
    "in a loop": lambda s, i: jax.lax.fori_loop(0, 2, lambda n, s: s + DEVICE[n], s),
    "in a jitted function": lambda s, i: jax.jit(lambda s: s * DEVICE[1])(s),
    "in a jitted function, numpy": lambda s, i: jax.jit(jax.jit(lambda s: s + jnp.asarray(HOST).sum()))(s),
    "all of it jitted": jax.jit(lambda s, i: s * DEVICE.sum()),
    "under a partial": partial(lambda s, i, scale: s * scale * DEVICE[0], scale=2.0),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_score_that_uses_an_array_from_outside_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r'score .* uses float32\[\d\] from outside its arguments; pass it by name with its axes: slope=\(slopes, "N"\)'):
        score_of(OUTSIDE[name])


def test_a_traced_value_from_outside_is_refused_a_number_is_not(normal: Any) -> None:
    """The message names the kind, the function and what it uses; a score or a mask, an array or one number."""
    q, k, v = call_arrays(normal)

    @jax.jit
    def call(limit: Any) -> Any:
        def below(i: Any) -> Any:
            return i.k < limit

        return attention(q, k, v, mask=below)

    with pytest.raises(ValueError, match=r"mask below uses int32\[\] from outside its arguments"):
        call(jnp.int32(3))
    with pytest.raises(ValueError, match=r"mask below uses int32\[7\] from outside its arguments"):
        call(jnp.arange(7, dtype="int32"))
    limit, host = jnp.int32(3), 3
    np.testing.assert_array_equal(*(jax.jit(partial(attention, mask=mask))(q, k, v) for mask in (lambda i: i.k < limit, lambda i: i.k < host)))


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (lambda s, i: s / s.shape[-1], "looks at the tile's shape; i.q_index and i.k_index say where an element is"),
        (lambda s, i: s + jnp.arange(s.shape[-1], dtype=s.dtype), "looks at the tile's shape"),
        (lambda s, i: s + i.k.size, "looks at the tile's shape"),
        (lambda s, i: jnp.swapaxes(s, -1, -2), "transpose along the tile's axes"),
        (lambda s, i: jnp.swapaxes(s, 0, 1), "transpose along the tile's axes"),
        (lambda s, i: s - s[..., :1], "slice along the tile's axes"),
        (lambda s, i: s + i.k[..., -1:], "slice along the tile's axes"),
        (lambda s, i: s - s[0, 0, 0, 0], "along the tile's axes"),
        (lambda s, i: jnp.roll(s, 1, -1), "along the tile's axes"),
        (lambda s, i: s[..., jnp.arange(s.shape[-1] - 1, -1, -1)], "along the tile's axes"),
        (lambda s, i: s @ jnp.swapaxes(s, -1, -2) @ s, "along the tile's axes"),
        (lambda s, i: s.reshape(-1)[::-1].reshape(s.shape), "along the tile's axes"),
        (lambda s, i: jax.lax.associative_scan(jnp.add, s, axis=-1), "along the tile's axes"),
        (lambda s, i: jax.lax.top_k(s, s.shape[-1])[0], "along the tile's axes"),
        (lambda s, i: s + jax.random.gumbel(jax.random.key(0), s.shape, s.dtype), "looks at the tile's shape"),
        (lambda s, i: s.at[..., 0].add(1.0), "scatter-add along the tile's axes"),
        (lambda s, i: jax.lax.reduce_window(s, 0.0, jax.lax.add, (1, 1, 1, 3), (1,) * 4, "SAME"), "reduce_window_sum along the tile's axes"),
        (lambda s, i: jax.lax.scan(lambda c, x: (c + 1, x + c), jnp.float32(0), s)[1], "scan along the tile's axes"),
        (lambda s, i: jnp.pad(s, ((0, 0),) * 3 + ((1, 0),))[..., :-1], "along the tile's axes"),
        (lambda s, i: jax.jit(lambda s: s - s.shape[-2])(s), "looks at the tile's shape"),
    ],
)
def test_a_function_that_depends_on_the_shape_of_its_tile_is_refused(score: Any, words: str, normal: Any) -> None:
    with pytest.raises(ValueError, match=f"score <lambda>: .*{words}"):
        attention(*call_arrays(normal), score=score)


def features(s: Any, i: Any, table: Any, weight: Any) -> Any:
    """All that may be done along feature axes."""
    swapped = jnp.swapaxes(weight, -1, -2).reshape(*weight.shape[:-2], -1)
    one = table[..., 0] * table[..., ::-1].sum(-1) + jnp.concatenate([table[..., :2], table], -1).max(-1) + jnp.cumsum(table, -1)[..., 1]
    one = jax.lax.reduce_precision(one, 8, 23)
    return s * one + swapped[..., 3] + lookup(table, i.k - i.q) + jax.nn.softmax(table, -1)[..., 2]


def test_along_feature_axes_anything_goes(normal: Any, close: Any) -> None:
    q, k, v = call_arrays(normal)
    table, weight = normal(q.shape[2], 4), normal(q.shape[0], q.shape[1], 3, 2)
    score = scores.from_function(features, table=(table, "N"), weight=(weight, "BT"))
    close(*(attention(q, k, v, score=score, backend=backend) for backend in ("blockwise", "reference")), times=3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: scores.from_function(lambda s, i, t: s + lookup(t, i.k), t=(jnp.ones(2, "float32"), "N")), "score <lambda>, called as .* shapes"),
        (lambda: scores.from_function(lambda s, i, t: s + lookup(t, i.k), t=(jnp.ones(S, "float32"), "S")), "along the tile's axes"),
        (lambda: scores.from_function(lambda s, i, t: s + lookup(t, i.k), t=(jnp.ones((2, 0), "float32"), "N")), "lookup: expected an array with features"),
        (lambda: scores.from_function(lambda s, i, t: s + lookup(t, s), t=(jnp.ones((2, 3), "float32"), "N")), "lookup: expected an integer index"),
        (lambda: scores.from_function(lambda s, i, t: s, b=(jnp.ones(2), "N")), r"called as <lambda>\(s, i, b\) .*unexpected keyword argument 'b'"),
        (lambda: lambda s, i: s if (i.k > i.q).any() else -s, "score <lambda>, called as .* with traced arrays of a tile"),
        (lambda: scores.softcap, "score softcap, called as "),
    ],
)
def test_a_function_that_fails_is_named_with_how_it_is_called(make: Any, words: str, normal: Any) -> None:
    q, k, v = call_arrays(normal)
    with pytest.raises((TypeError, ValueError), match=words):
        attention(q[:, :, :2], k[:, :, :1], v[:, :, :1], score=make())


def test_an_array_bound_by_partial_is_refused() -> None:
    def plus(s: Any, i: Any, a: Any) -> Any:
        return s + a

    for bound in (partial(plus, a=DEVICE), partial(plus, a=HOST), partial(plus, a=[1.0])):
        with pytest.raises(TypeError, match=r"plus: arguments bound by functools\.partial must be hashable; pass arrays by name"):
            score_of(bound)
    np.testing.assert_array_equal(score_of(partial(plus, a=1.5)), score_of(lambda s, i: s + 1.5))


def test_a_callable_object_and_a_method_serve_as_functions() -> None:
    class Shift:
        def __init__(self, by: float) -> None:
            self.by = by

        def __call__(self, s: Any, i: Any) -> Any:
            return s + self.by * i.k

    shift = Shift(0.5)
    np.testing.assert_array_equal(score_of(shift), score_of(shift.__call__))
    assert repr(scores.from_function(shift)) == "Shift()"


def test_float64_from_numpy_is_taken_as_float32() -> None:
    """Without x64 there is no other meaning, and no warning."""
    with jax.enable_x64(False):
        a = np.linspace(0, 1, N)
        assert a.dtype == np.float64
        np.testing.assert_array_equal(score_of(lambda s, i, a: s + a, a=(a, "N")), score_of(lambda s, i, a: s + a, a=(a.astype("float32"), "N")))


@pytest.mark.parametrize(
    ("fn", "what"),
    [
        (lambda s, i: s / jnp.abs(s).max(-1, keepdims=True), "reduce_max"),
        (lambda s, i: s[..., ::-1], "rev"),
        (lambda s, i: s - s.mean(-2, keepdims=True), "reduce_sum"),
        (lambda s, i: jax.jit(lambda s: jnp.cumsum(s, -1))(s), "cumsum"),
        (lambda s, i: s * jnp.argmax(s, -1, keepdims=True), "argmax"),
    ],
)
def test_a_function_that_is_not_elementwise_is_refused(fn: Callable[..., Any], what: str) -> None:
    q = jnp.zeros((1, 3, 1, 2))
    with pytest.raises(ValueError, match=f"score <lambda>: expected an elementwise function of the tile, received one with {what} along the tile's axes"):
        attention(q, q, q, score=fn)


def test_feature_axes_may_be_reduced() -> None:
    q, a = jnp.ones((1, 3, 1, 2)), jnp.ones((1, 3, 5))
    score = scores.from_function(lambda s, i, a, b: s + (a * b).sum(-1), a=(a, "BT"), b=(a, "BS"))
    np.testing.assert_allclose(attention(q, q, q, score=score), attention(q, q, q), rtol=1e-6)
