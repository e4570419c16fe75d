"""Blockwise equals the reference, by both of its ways, and holds what it says about memory, chunks and skipped tiles."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import Dropout, attention, masks, scores
from pallas_kernels.flash.backends.blockwise import long, plan, short

SIDE = 8
PATHS = ["short", "long"]


@contextmanager
def small_tiles(path: str, tile_bytes: int = 2**21) -> Iterator[None]:
    """Tiles of 8 x 8 in place of hundreds, and the way named; fails where that way was not gone."""
    unrolled = 10**6 if path == "short" else 0
    tiles = mock.patch.multiple(plan, UNROLLED=unrolled, SIDE=SIDE, SHORT_SIDE=SIDE, TILE_BYTES=tile_bytes, SHORT_BYTES=tile_bytes)
    with tiles, mock.patch.object(short, "forward", wraps=short.forward) as by_short, mock.patch.object(long, "forward", wraps=long.forward) as by_long:
        yield
    assert [name for name, way in (("short", by_short), ("long", by_long)) if way.called] == [path]


def arrays_of(normal: Any, B: int, T: int, S: int, N: int, K: int, H: int, Hv: int, dtype: str = "float32") -> Any:
    """q, k, v and the cotangents of o and lse."""
    exact = "float64" if dtype == "float64" else "float32"
    inputs = tuple(normal(*shape, seed=n, dtype=dtype) for n, shape in enumerate([(B, T, N, H), (B, S, K, H), (B, S, K, Hv)]))
    return inputs, (normal(B, T, N, Hv, seed=3, dtype=dtype), normal(B, N, T, seed=4, dtype=exact))


def value_and_gradients(backend: str, inputs: Any, cotangents: Any, **options: Any) -> Any:
    out, vjp = jax.vjp(partial(attention, backend=backend, return_lse=True, **options), *inputs)
    return out, vjp(cotangents)


def split_lse(result: Any) -> tuple[Any, Any]:
    """Where lse is -inf, and everything else, finite."""
    (o, lse), gradients = result
    return np.isneginf(lse), (o, np.where(np.isneginf(lse), 0, lse), gradients)


def same(close: Any, actual: Any, expected: Any, times: float = 2) -> None:
    (empty, finite), (expected_empty, expected_finite) = split_lse(actual), split_lse(expected)
    np.testing.assert_array_equal(empty, expected_empty)
    dtype = finite[0].dtype  # the lse of short floats is no more exact than they are
    close(jax.tree.map(lambda a: a.astype(dtype), finite), expected_finite, times=times)


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=settings.default.max_examples // 2)
@given(st.data())
def test_equals_float64_numpy(path: str, some_mask: Any, some_positions: Any, kept_by_hand: Any, oracle: Any, normal: Any, close: Any, data: Any) -> None:
    """Value, lse and every gradient, whatever the sizes, positions, mask, sinks, scores, dropout and chunks; and a second run gives the same bits."""
    draw = data.draw
    B, K, G = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    T, S, H, Hv = draw(st.sampled_from([1, 5, 11, 17, 23])), draw(st.sampled_from([1, 7, 13, 19, 29])), draw(st.integers(1, 7)), draw(st.integers(1, 5))
    q_positions, kv_positions = some_positions(draw, B, T), some_positions(draw, B, S)
    mask, allowed = some_mask(draw, B, K * G, T, S, q_positions, kv_positions)
    mask, allowed = draw(st.sampled_from([(mask, allowed)] * 4 + [(None, True)]))
    dtype = draw(st.sampled_from(["float32", "float32", "bfloat16"]))
    learned = {name: normal(K * G, seed=n) for n, name in enumerate(("sinks", "slopes"), 7) if draw(st.booleans())}
    dropout = Dropout(0.3, draw(st.integers(0, 2**32 - 1))) if draw(st.booleans()) else None
    inputs, cotangents = arrays_of(normal, B, T, S, K * G, K, H, Hv, dtype)

    def run(inputs: Any, learned: Any, cotangents: Any, mask: Any) -> Any:
        def call(inputs: Any, learned: Any) -> Any:
            score = (scores.alibi(learned["slopes"] / 9), scores.softcap(2.0)) if "slopes" in learned else None
            options = {"q_positions": q_positions, "kv_positions": kv_positions, "scale": 0.4, "dropout": dropout, "sinks": learned.get("sinks")}
            return attention(*inputs, mask=mask, score=score, backend="blockwise", return_lse=True, **options)

        out, vjp = jax.vjp(call, inputs, learned)
        return out, vjp(cotangents)

    with small_tiles(path, draw(st.sampled_from([1, 4 * SIDE * S * G, 2**21]))):
        if draw(st.booleans()):
            program = jax.jit(run)
            actual, again = (program(inputs, learned, cotangents, mask) for _ in range(2))
        else:  # the mask's arrays are known before the program runs
            program = jax.jit(partial(run, mask=mask))
            actual, again = (program(inputs, learned, cotangents) for _ in range(2))

    q_places, kv_places = (np.broadcast_to(np.arange(n) if p is None else p, (B, n)) for p, n in ((q_positions, T), (kv_positions, S)))
    gap = abs(kv_places[:, None, None] - q_places[:, None, :, None])

    def score(s: Any) -> Any:
        bent = np.tanh((s - np.asarray(learned["slopes"], float)[:, None, None] / 9 * gap) / 2)
        return 2 * bent, 1 - bent**2

    keep = True if dropout is None else kept_by_hand(dropout, K * G, q_places, kv_places)
    rate = 0 if dropout is None else dropout.rate
    expected = oracle(*inputs, allowed=allowed, scale=0.4, sinks=learned.get("sinks"), score=score if "slopes" in learned else None, keep=keep, rate=rate)
    backward = expected.gradients(*cotangents)
    others = {"sinks": backward.sinks, "slopes": -(backward.s * gap).sum((0, 2, 3)) / 9}
    assert [a.dtype for a in (*actual[0], *actual[1][0])] == [dtype, "float32", dtype, dtype, dtype]
    same(close, actual, ((expected.o, expected.lse), (tuple(backward[:3]), {name: others[name] for name in learned})))
    jax.tree.map(np.testing.assert_array_equal, again, actual)


@pytest.fixture(scope="module")
def three_calls(normal: Any) -> tuple[Any, Any]:
    """Inputs, cotangents, ids and positions of three calls, and what the reference makes of them, stacked."""
    T = 13
    rng = np.random.default_rng(5)
    inputs, cotangents = arrays_of(normal, 6, T, T, 2, 1, 3, 5)
    inputs, cotangents = jax.tree.map(lambda a: a.reshape(3, 2, *a.shape[1:]), (inputs, cotangents))
    calls = inputs, cotangents, rng.integers(0, 3, (3, 2, T)), np.stack([rng.permutation(T) for _ in range(3)])
    one = jax.jit(partial(masked_call, "reference"))
    return calls, jax.tree.map(lambda *a: np.stack(a), *(one(*(jax.tree.map(lambda a: a[n], x) for x in calls)) for n in range(3)))  # noqa: B023


def masked_call(backend: str, inputs: Any, cotangents: Any, ids: Any, places: Any) -> Any:
    mask = masks.segments(ids) & masks.causal()
    return value_and_gradients(backend, inputs, cotangents, mask=mask, q_positions=places, kv_positions=places)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["vmap", "scan", "checkpoint"])
def test_transformed_equals_the_reference(name: str, path: str, three_calls: Any, close: Any) -> None:
    calls, expected = three_calls
    one = partial(masked_call, "blockwise")
    every = {
        "vmap": lambda *calls: jax.vmap(one)(*calls),
        "scan": lambda *calls: jax.lax.scan(lambda n, call: (n, one(*call)), 0, calls)[1],
        "checkpoint": lambda *calls: jax.lax.map(lambda call: jax.checkpoint(one)(*call), calls),
    }[name]
    with small_tiles(path):
        actual = jax.jit(every)(*calls)
    same(close, actual, expected)


@pytest.mark.parametrize("path", PATHS)
def test_grad_of_vmap_and_scan_of_grad_with_checkpoint(path: str, normal: Any, close: Any) -> None:
    """Three layers of attention by scan with a remat policy, under vmap, differentiated."""
    x, weights = normal(2, 1, 11, 2, 3), normal(3, 3, 3, seed=1)

    def loss(backend: str, weights: Any, x: Any) -> Any:
        @jax.checkpoint
        def layer(x: Any, w: Any) -> Any:
            return x + attention(x @ w, x, x, mask=masks.sliding_window(3), backend=backend), None

        return jax.vmap(lambda x: jax.lax.scan(layer, x, weights)[0])(x).var()

    with small_tiles(path):
        actual = jax.jit(jax.value_and_grad(partial(loss, "blockwise"), (0, 1)))(weights, x)
    close(actual, jax.jit(jax.value_and_grad(partial(loss, "reference"), (0, 1)))(weights, x), times=2)


@pytest.mark.parametrize(("backend", "expected"), [("blockwise", False), ("reference", True)])
def test_the_long_way_holds_no_array_over_queries_and_keys(backend: str, expected: bool, shapes_in: Any, normal: Any) -> None:
    T, S, B, N, K = 61, 103, 2, 6, 3  # padded: 64 and 104
    inputs, cotangents = arrays_of(normal, B, T, S, N, K, 5, 7)
    mask = masks.causal() & masks.segments(np.zeros((B, T), int), np.zeros((B, S), int)) | masks.prefix(np.array([5, 9]))
    with small_tiles("long") if backend == "blockwise" else mock.MagicMock():
        program = jax.make_jaxpr(partial(value_and_gradients, backend, mask=mask))(inputs, cotangents)
    shapes = shapes_in(program)
    both = {shape for shape in shapes if {61, 64} & set(shape) and {103, 104} & set(shape)}
    assert bool(both) is expected, both
    if not expected:
        assert max(int(np.prod(shape)) for shape in shapes) <= B * N * 104 * 8


@pytest.fixture(scope="module")
def many_heads(normal: Any) -> Any:
    arrays, rng = arrays_of(normal, 3, 11, 8, 12, 4, 5, 2), np.random.default_rng(1)
    mask = masks.lengths(np.array([3, 8, 0])) | masks.dense(rng.random((1, 12, 11, 8)) < 0.3) | masks.dense(rng.random((3, 1, 11, 1)) < 0.3)
    return arrays, mask, jax.jit(partial(value_and_gradients, "reference", mask=mask))(*arrays)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("tile_bytes", [1, 2 * 3 * 4 * SIDE * SIDE, 2**21])
def test_chunks_of_heads_change_nothing(tile_bytes: int, path: str, many_heads: Any, close: Any) -> None:
    """Masks that differ by batch and by head; one group of heads at a time, two of four, all at once."""
    (inputs, cotangents), mask, expected = many_heads
    with small_tiles(path, tile_bytes), mock.patch.object(jax.lax, "map", wraps=jax.lax.map) as loop:
        actual = jax.jit(partial(value_and_gradients, "blockwise", mask=mask))(inputs, cotangents)
    counts = {len(call.args[1][0]) for call in loop.call_args_list}
    assert counts == {1: {12}, 2 * 3 * 4 * SIDE * SIDE: {6}, 2**21: set()}[tile_bytes]
    same(close, actual, expected)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 50))
def test_chunks_divide_batch_and_heads_and_are_as_large_as_allowed(B: int, K: int, most: int) -> None:
    cb, ck = plan._heads_to_a_chunk(B, K, most)
    assert B % cb == 0 and K % ck == 0 and cb * ck <= most and (cb == 1 or ck == K)
    larger = [b * K for b in range(cb + 1, B + 1) if B % b == 0] if ck == K else [k for k in range(ck + 1, K + 1) if K % k == 0]
    assert all(size > most for size in larger)


def bent(s: Any, i: Any, slope: Any, place: Any, feature: Any) -> Any:
    return s + slope * (i.k - i.q) * place + 0.1 * feature[..., 0] * jnp.tanh(s + feature[..., 1])


@pytest.fixture(scope="module")
def scored(normal: Any) -> Callable[..., Any]:
    """`scored(backend)`: (o, lse), and the gradients of q, k, v, sinks and every array of the scores, by name."""
    B, T, S, N, K = 3, 19, 23, 4, 2
    inputs, cotangents = arrays_of(normal, B, T, S, N, K, 5, 3)
    rng = np.random.default_rng(3)
    positions = {"q_positions": rng.permutation(23)[:T], "kv_positions": rng.permutation(23)}
    shapes = {"slope": (N,), "place": (B, S), "feature": (B, T, 2), "table": (N, 8), "bias": (1, N, T, S), "row": (B, 1, T, 1), "sinks": (N,)}
    learned = {name: normal(*shape, seed=10 + n) for n, (name, shape) in enumerate(shapes.items())}

    def run(backend: str, dropout: Dropout | None) -> Any:
        def call(inputs: Any, learned: Any) -> Any:
            a = learned
            score = (
                scores.from_function(bent, slope=(a["slope"], "N"), place=(a["place"], "BS"), feature=(a["feature"], "BT")),
                scores.relative_bias(a["table"], False, 20), scores.bias(a["bias"]), scores.softcap(3.0), scores.bias(a["row"]), scores.alibi(a["slope"]),
            )  # fmt: skip
            mask = masks.causal() | masks.sliding_window(2, 5)
            return attention(*inputs, mask=mask, score=score, sinks=a["sinks"], dropout=dropout, backend=backend, return_lse=True, **positions)

        out, vjp = jax.vjp(call, inputs, learned)
        return out, vjp(cotangents)

    return run


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("tile_bytes", [1, 2**21])
@pytest.mark.parametrize("dropout", [None, Dropout(0.3, 5)], ids=["", "dropout"])
def test_every_array_of_every_score_has_the_gradient_of_the_reference(path: str, tile_bytes: int, dropout: Any, scored: Any, close: Any) -> None:
    with small_tiles(path, tile_bytes):
        actual = jax.jit(lambda: scored("blockwise", dropout))()
    close(actual, jax.jit(lambda: scored("reference", dropout))(), times=2)


@pytest.mark.parametrize("path", PATHS)
def test_rows_beyond_the_end_stay_out_however_high_their_scores(path: str, normal: Any, oracle: Any, close: Any) -> None:
    """A score of 200 at a padded row of zeros is finite, its exponential is not."""
    (q, k, v), cotangents = arrays_of(normal, 2, 11, 13, 2, 1, 3, 5)
    with small_tiles(path):
        actual = jax.jit(partial(value_and_gradients, "blockwise", score=lambda s, i: s + 200.0))((q, k, v), cotangents)
    expected = oracle(q, k, v, score=lambda s: (s + 200, 1.0))
    same(close, actual, ((expected.o, expected.lse), tuple(expected.gradients(*cotangents)[:3])), times=10)


@pytest.mark.parametrize("path", PATHS)
def test_rows_with_nothing_allowed_have_the_lse_of_their_sink(path: str, normal: Any) -> None:
    (q, k, v), _ = arrays_of(normal, 2, 9, 11, 2, 1, 3, 3)
    sinks = jnp.array([0.5, -1.0])
    with small_tiles(path):
        o, lse = jax.jit(lambda: attention(q, k, v, mask=masks.lengths(np.array([0, 0])), sinks=sinks, backend="blockwise", return_lse=True))()
    np.testing.assert_array_equal(o, np.zeros_like(o))
    np.testing.assert_allclose(lse, np.broadcast_to(sinks[:, None], lse.shape), rtol=1e-6)


GAP, LENGTHS = np.arange(29) - np.arange(7)[:, None], np.array([7, 8, 3])
BELOW = np.arange(29) < LENGTHS[:, None]
AHEAD = masks.from_function(lambda i: (i.k == i.q) | (i.k == i.q + 1), bounds=lambda low, high: (low, high + 1))
OUT_OF_SIGHT = {
    "causal": (masks.causal(), GAP <= 0),
    "window": (masks.sliding_window(2, 1), (GAP >= -2) & (GAP <= 1)),
    "bounded": (AHEAD, (GAP == 0) | (GAP == 1)),
    "lengths": (masks.lengths(LENGTHS), BELOW[:, None, None]),
    "valid": (masks.valid(BELOW), BELOW[:, None, None]),
}


# The short way skips what is known before the program runs.
@pytest.mark.parametrize(("path", "name"), [("short", "causal"), ("short", "bounded"), *(("long", name) for name in OUT_OF_SIGHT)])
def test_tiles_with_nothing_allowed_are_never_loaded(path: str, name: str, oracle: Any, normal: Any, close: Any) -> None:
    """Keys and values that no query can see may be NaN, if a whole tile of them is out of sight."""
    (q, k, v), cotangents = arrays_of(normal, 3, 7, 29, 2, 1, 3, 2)
    mask, allowed = OUT_OF_SIGHT[name]
    dirty = tuple(a.at[:, 16:].set(jnp.nan) for a in (k, v))
    with small_tiles(path):
        actual = jax.jit(partial(value_and_gradients, "blockwise"))((q, *dirty), cotangents, mask=mask)
    expected = oracle(q, k, v, allowed=allowed)
    same(close, actual, ((expected.o, expected.lse), tuple(expected.gradients(*cotangents)[:3])))


def test_each_chunk_of_heads_has_its_own_list_of_tiles(oracle: Any, normal: Any, close: Any) -> None:
    """The first row sees one tile of keys, the last all of them; a chunk a row, NaN where its own row can't see."""
    (q, k, v), cotangents = arrays_of(normal, 3, 7, 29, 2, 1, 3, 2)
    lengths = np.array([5, 16, 29])
    hidden = (np.arange(29) >= -(-lengths // SIDE)[:, None] * SIDE)[..., None, None]
    dirty = tuple(jnp.where(hidden, jnp.nan, a) for a in (k, v))
    with small_tiles("long", 1):
        actual = jax.jit(partial(value_and_gradients, "blockwise"))((q, *dirty), cotangents, mask=masks.lengths(lengths))
    expected = oracle(q, k, v, allowed=(np.arange(29) < lengths[:, None])[:, None, None])
    same(close, actual, ((expected.o, expected.lse), tuple(expected.gradients(*cotangents)[:3])))


@pytest.mark.slow
def test_memory_grows_with_length_and_not_its_square() -> None:
    """Forward and backward, causal with a T5 table and its gradient, 4 heads of 64 features."""

    def temporary(T: int) -> int:
        q, table = jax.ShapeDtypeStruct((1, T, 4, 64), jnp.float32), jax.ShapeDtypeStruct((4, 32), jnp.float32)

        def loss(q: Any, k: Any, v: Any, table: Any) -> Any:
            return attention(q, k, v, mask=masks.causal(), score=scores.relative_bias(table, False, 128), backend="blockwise").sum()

        memory = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3))).lower(q, q, q, table).compile().memory_analysis()
        return int(memory.temp_size_in_bytes)

    at_8k, at_16k = temporary(8192), temporary(16384)
    assert at_16k <= 150e6 and at_16k <= 2.2 * at_8k


@pytest.mark.slow
@pytest.mark.parametrize("length", [1024, 1031])
def test_at_its_real_tile_sizes(length: int, normal: Any, close: Any) -> None:
    inputs, cotangents = arrays_of(normal, 1, length, length + 7, 2, 1, 16, 16)
    ids = np.sort(np.random.default_rng(0).integers(0, 5, (1, length + 7)))
    mask = masks.causal() & masks.segments(ids[:, :length], ids)
    run = [jax.jit(partial(value_and_gradients, backend, mask=mask))(inputs, cotangents) for backend in ("blockwise", "reference")]
    same(close, *run)
