"""What attention means, on every backend, against float64 numpy and jax.nn."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from pallas_kernels import Dropout, attention, explain, lookup, masks, scores

BACKENDS = ["reference", "blockwise"]
B, T, S, N, K, H, Hv = 2, 7, 11, 6, 3, 5, 13
GAP = np.arange(S) - np.arange(T)[:, None]
RNG = np.random.default_rng(0)
Q_PLACES, KV_PLACES = RNG.permutation(T) + 3, np.stack([RNG.permutation(S) for _ in range(B)])
IDS = RNG.integers(0, 3, (B, T)), RNG.integers(1, 5, (B, S))
LENGTHS = np.array([4, 0])


def swish(s: Any) -> tuple[Any, Any]:
    gate = 1 / (1 + np.exp(-s))
    return s * gate, gate * (1 + s * (1 - gate))


def capped(s: Any) -> tuple[Any, Any]:
    return 2 * np.tanh(s / 2), 1 - np.tanh(s / 2) ** 2


def windowed(s: Any, i: Any, table: Any) -> Any:
    return s + lookup(table, i.k - i.q + 3)


def affine(s: Any, i: Any, a: Any, b: Any, c: Any) -> Any:
    return s * a[..., 0] + a[..., 1] * i.k_index + b * (i.head - 2 * i.batch) + jnp.sin(c)


def affine_by_numpy(s: Any, a: Any, b: Any, c: Any) -> Any:
    a = np.asarray(a, float)[:, None, :, None]
    places = np.arange(N)[:, None, None] - 2 * np.arange(B)[:, None, None, None]
    return s * a[..., 0] + a[..., 1] * np.arange(S) + np.asarray(b, float)[None, :, None, :] * places + np.sin(float(c)), a[..., 0]


def add_at_buckets(g: Any) -> Any:
    table = np.zeros((N, 8))
    for n in range(N):
        np.add.at(table[n], np.clip(GAP + 3, 0, 7), g.score[:, n].sum(0))
    return table


def affine_gradient(name: str, arrays: Any, g: Any) -> Any:
    """The gradient of one of affine's arrays; g.s = g.score * a[..., 0], so g.score stands for the sum's."""
    if name == "a":
        q, k = np.asarray(arrays["q"], float), np.repeat(np.asarray(arrays["k"], float), N // K, 2)
        raw = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(H)
        return np.stack([(g.score * raw).sum((1, 3)), (g.score * np.arange(S)).sum((1, 3))], -1)
    if name == "b":
        return (g.score * (np.arange(N)[:, None, None] - 2 * np.arange(B)[:, None, None, None])).sum((0, 2))
    return g.score.sum() * np.cos(float(arrays["c"]))


@dataclass(frozen=True)
class Case:
    """Options of `attention` and of the oracle, from the arrays; shapes of further arrays; their gradients, from the oracle's."""

    options: Callable[[Any], dict[str, Any]] = lambda a: {}
    oracle: Callable[[Any], dict[str, Any]] = lambda a: {}
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    gradients: dict[str, Callable[[Any, Any], Any]] = field(default_factory=dict)


SINKS = {"sinks": lambda a, g: g.sinks}
AFFINE = {name: partial(affine_gradient, name) for name in "abc"}
CASES = {
    "plain": Case(),
    "scale": Case(lambda a: {"scale": -0.3}, lambda a: {"scale": -0.3}),
    "causal": Case(lambda a: {"mask": masks.causal()}, lambda a: {"allowed": GAP <= 0}),
    "segments": Case(lambda a: {"mask": masks.segments(*IDS)}, lambda a: {"allowed": (IDS[0][:, :, None] == IDS[1][:, None])[:, None]}),
    "empty rows": Case(
        lambda a: {"mask": masks.lengths(LENGTHS) & masks.sliding_window(2)},
        lambda a: {"allowed": (np.arange(S) < LENGTHS[:, None, None, None]) & (GAP <= 0) & (GAP >= -2)},
    ),
    "positions": Case(
        lambda a: {"mask": masks.causal() & masks.dilated(2), "q_positions": Q_PLACES, "kv_positions": KV_PLACES},
        lambda a: {"allowed": (KV_PLACES[:, None, None] <= Q_PLACES[:, None]) & ((Q_PLACES[:, None] - KV_PLACES[:, None, None]) % 2 == 0)},
    ),
    "sinks": Case(lambda a: {"sinks": a["sinks"]}, lambda a: {"sinks": a["sinks"]}, {"sinks": (N,)}, SINKS),
    "sinks, empty rows": Case(
        lambda a: {"sinks": a["sinks"], "mask": masks.lengths(LENGTHS)},
        lambda a: {"sinks": a["sinks"], "allowed": np.arange(S) < LENGTHS[:, None, None, None]},
        {"sinks": (N,)},
        SINKS,
    ),
    "bare function": Case(lambda a: {"score": lambda s, i: jax.nn.swish(s), "mask": lambda i: i.k != i.q}, lambda a: {"score": swish, "allowed": GAP != 0}),
    "alibi, then softcap": Case(
        lambda a: {"score": (scores.alibi(a["slopes"]), scores.softcap(2.0)), "mask": masks.causal()},
        lambda a: {"score": lambda s: capped(s - np.asarray(a["slopes"], float)[:, None, None] * abs(GAP)), "allowed": GAP <= 0},
        {"slopes": (N,)},
        {"slopes": lambda a, g: -(g.s * abs(GAP)).sum((0, 2, 3))},
    ),
    "softcap, then alibi": Case(
        lambda a: {"score": [scores.softcap(2.0), scores.alibi(a["slopes"])]},
        lambda a: {"score": lambda s: (capped(s)[0] - np.asarray(a["slopes"], float)[:, None, None] * abs(GAP), capped(s)[1])},
        {"slopes": (N,)},
        {"slopes": lambda a, g: -(g.score * abs(GAP)).sum((0, 2, 3))},
    ),
    "bias": Case(
        lambda a: {"score": scores.bias(a["bias"])},
        lambda a: {"score": lambda s: (s + np.asarray(a["bias"], float), 1.0)},
        {"bias": (N, 1, S)},
        {"bias": lambda a, g: g.score.sum((0, 2))[:, None]},
    ),
    "own table": Case(
        lambda a: {"score": scores.from_function(windowed, table=(a["table"], "N"))},
        lambda a: {"score": lambda s: (s + np.asarray(a["table"], float)[:, np.clip(GAP + 3, 0, 7)], 1.0)},
        {"table": (N, 8)},
        {"table": lambda a, g: add_at_buckets(g)},
    ),
    "own, three signatures": Case(
        lambda a: {"score": scores.from_function(affine, a=(a["a"], "BT"), b=(a["b"], "NS"), c=(a["c"], ""))},
        lambda a: {"score": lambda s: affine_by_numpy(s, a["a"], a["b"], a["c"])},
        {"a": (B, T, 2), "b": (N, S), "c": ()},
        AFFINE,
    ),
}


def arrays_of(case: Case, normal: Any, dtype: Any) -> dict[str, Any]:
    shapes = {"q": (B, T, N, H), "k": (B, S, K, H), "v": (B, S, K, Hv), **case.shapes}
    return {name: normal(*shape, seed=n, dtype=dtype) for n, (name, shape) in enumerate(shapes.items())}


def same_lse(close: Any, actual: Any, expected: Any) -> None:
    assert (np.isneginf(actual) == np.isneginf(expected)).all()
    close(jnp.where(jnp.isneginf(actual), 0, actual), np.where(np.isneginf(expected), 0, expected))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_value_lse_and_every_gradient_equal_float64_numpy(name: str, backend: str, oracle: Any, normal: Any, close: Any) -> None:
    case = CASES[name]
    arrays = arrays_of(case, normal, jnp.float32)
    check_case(case, arrays, backend, oracle, normal, close)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["empty rows", "alibi, then softcap"])
def test_in_other_dtypes_too(name: str, dtype: str, backend: str, oracle: Any, normal: Any, close: Any) -> None:
    with jax.enable_x64(True if dtype == "float64" else jax.config.jax_enable_x64):
        arrays = arrays_of(CASES[name], normal, dtype)
        check_case(CASES[name], arrays, backend, oracle, normal, close)


def check_case(case: Case, arrays: Any, backend: str, oracle: Any, normal: Any, close: Any) -> None:
    q, k, v = (arrays[name] for name in "qkv")
    reason = dict(explain(q, k, v, **case.options(arrays)).reasons)[backend]
    if reason is not None:
        with pytest.raises(NotImplementedError, match=re.escape(reason)):
            attention(q, k, v, **case.options(arrays), backend=backend)
        return
    exact = jnp.float64 if q.dtype == jnp.float64 else jnp.float32
    cotangents = normal(B, T, N, Hv, seed=7, dtype=q.dtype), normal(B, N, T, seed=8, dtype=exact)

    @jax.jit
    def run(arrays: Any, cotangents: Any) -> Any:
        def call(a: Any) -> Any:
            return attention(a["q"], a["k"], a["v"], **case.options(a), backend=backend, return_lse=True)

        out, vjp = jax.vjp(call, arrays)
        return out, vjp(cotangents)[0]

    (o, lse), gradients = run(arrays, cotangents)
    assert o.dtype == q.dtype and lse.dtype == exact
    expected = oracle(*(np.asarray(a, np.float64) for a in (q, k, v)), **case.oracle(arrays))
    close(o, expected.o)
    same_lse(close, lse.astype(q.dtype), expected.lse)
    backward = expected.gradients(*cotangents)
    close(gradients, {name: case.gradients[name](arrays, backward) if name in case.gradients else getattr(backward, name) for name in arrays}, times=2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lse_of_short_floats_is_exact_in_the_reference(dtype: str, oracle: Any, normal: Any, close: Any) -> None:
    arrays = [normal(*shape, seed=n, dtype=dtype) for n, shape in enumerate([(B, T, N, H), (B, S, K, H), (B, S, K, Hv)])]
    _, lse = attention(*arrays, backend="reference", return_lse=True)
    close(lse, oracle(*(np.asarray(a, np.float64) for a in arrays)).lse)


FOREIGN = {
    "plain": ({}, {}),
    "causal": ({"mask": masks.causal()}, {"is_causal": True}),
    "window": ({"mask": masks.sliding_window(4, 2)}, {"local_window_size": (4, 2)}),
    "lengths": ({"mask": masks.lengths(np.array([5, 1]))}, {"key_value_seq_lengths": np.array([5, 1], np.int32)}),
    "array": ({"mask": abs(GAP) < 9}, {"mask": (abs(GAP) < 9)[None, None]}),
    "bias": ({"score": scores.bias(np.sin(GAP).astype("float32")), "scale": 0.7}, {"bias": np.sin(GAP).astype("float32")[None, None], "scale": 0.7}),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_equals_jax_nn(name: str, normal: Any, close: Any) -> None:
    ours, theirs = FOREIGN[name]
    q, k, v, do = normal(B, T, N, H), normal(B, S, K, H, seed=1), normal(B, S, K, H, seed=2), normal(B, T, N, H, seed=3)

    @jax.jit
    def run(q: Any, k: Any, v: Any, do: Any) -> Any:
        (a, ours_back), (b, theirs_back) = (jax.vjp(f, q, k, v) for f in (partial(attention, **ours), partial(jax.nn.dot_product_attention, **theirs)))
        return (a, ours_back(do)), (b, theirs_back(do))

    close(*run(q, k, v, do), times=2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lead", [(), (3, 1, 2)])
def test_leading_dimensions_count_as_one(lead: tuple[int, ...], backend: str, normal: Any) -> None:
    size = int(np.prod(lead))
    arrays = normal(*lead, T, N, H), normal(*lead, S, K, H, seed=1), normal(*lead, S, K, Hv, seed=2)
    mask = masks.lengths(np.arange(1, size + 1)) & masks.from_function(lambda i: (i.k + i.batch) % 2 == 0) & masks.sliding_window(7, 7)
    call = jax.jit(partial(attention, mask=mask, q_positions=np.arange(size * T).reshape(size, T) % 9, backend=backend, return_lse=True))
    (o, lse), flat = call(*arrays), call(*(a.reshape(size, *a.shape[-3:]) for a in arrays))
    assert o.shape == (*lead, T, N, Hv) and lse.shape == (*lead, N, T)
    for a, b in zip((o, lse), flat, strict=True):
        np.testing.assert_array_equal(a.reshape(b.shape), b)


@pytest.mark.parametrize(("b", "t", "s"), [(0, 2, 3), (2, 0, 3), (2, 3, 0)])
def test_empty_arrays_give_empty_or_zero(b: int, t: int, s: int, normal: Any) -> None:
    q, k, v = normal(b, t, 2, 5), normal(b, s, 1, 5), normal(b, s, 1, 3)
    o, lse = attention(q, k, v, mask=masks.causal(), return_lse=True)
    assert o.shape == (b, t, 2, 3) and (o == 0).all() and (lse == -jnp.inf).all()
    o, lse = attention(q, k, v, sinks=jnp.array([1.5, -2.5], "float32"), return_lse=True, score=scores.alibi(jnp.ones(2, "float32")))
    assert (o == 0).all() and (lse == jnp.array([1.5, -2.5], "float32")[:, None]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_with_nothing_allowed_takes_no_gradient_however_odd_the_one_of_its_lse(backend: str, normal: Any, oracle: Any, close: Any) -> None:
    q, k, v = normal(B, T, N, H), normal(B, S, K, H, seed=1), normal(B, S, K, Hv, seed=2)

    def energy(q: Any, k: Any, v: Any) -> Any:
        o, lse = attention(q, k, v, mask=masks.from_function(lambda i: i.q > 2), backend=backend, return_lse=True)
        return jnp.where(lse > -jnp.inf, lse**2, 0).sum() + o.sum()  # at -inf, the gradient of lse**2 is 0 * -inf

    expected = oracle(q, k, v, allowed=(np.arange(T) > 2)[:, None])
    dlse = np.where(np.isneginf(expected.lse), 0, 2 * np.where(np.isneginf(expected.lse), 0, expected.lse))
    close(jax.jit(jax.grad(energy, (0, 1, 2)))(q, k, v), tuple(expected.gradients(np.ones(expected.o.shape), dlse)[:3]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_key_in_a_thousand_equal_ones_is_exact(backend: str, normal: Any) -> None:
    """Scores of +-2000 neither overflow nor lose the largest."""
    q, k = jnp.full((1, 1, 1, 1), 100.0, "float32"), jnp.asarray(np.linspace(-20, 20, 1009, dtype="float32").reshape(1, 1009, 1, 1))
    o, lse = attention(q, k, k, backend=backend, return_lse=True)
    assert o.item() == pytest.approx(20, abs=0.01) and lse.item() == pytest.approx(2000 + np.log(1 / (1 - np.exp(-100 * 40 / 1008))), rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sinks_far_above_and_below_the_scores(backend: str, normal: Any, oracle: Any, close: Any) -> None:
    q, k, v, sinks = normal(B, T, N, H), normal(B, S, K, H, seed=1), normal(B, S, K, Hv, seed=2), np.array([300, -300, 0, 5, -5, 90], "float32")
    o, lse = jax.jit(partial(attention, backend=backend, return_lse=True))(q, k, v, sinks=sinks)
    expected = oracle(q, k, v, sinks=sinks)
    close(o, expected.o)
    np.testing.assert_allclose(lse, expected.lse, rtol=1e-6, atol=1e-5)


def test_derivatives_are_those_of_finite_differences(normal: Any) -> None:
    """Forward and reverse, first and second order, of everything that has a gradient, through o and lse."""
    with jax.enable_x64(True):
        f64 = partial(normal, dtype="float64")
        q, k, v, sinks, table = f64(1, 3, 2, 3), f64(1, 5, 1, 3, seed=1), f64(1, 5, 1, 2, seed=2), f64(2, seed=3), f64(2, 8, seed=4)

        def call(q: Any, k: Any, v: Any, sinks: Any, table: Any) -> Any:
            score = scores.from_function(windowed, table=(table, "N")), scores.softcap(3.0)
            return attention(q, k, v, mask=masks.causal(), score=score, sinks=sinks, dropout=Dropout(0.3, 5), backend="reference", return_lse=True)

        check_grads(jax.jit(call), (q, k, v, sinks, table), order=2, modes=("fwd",), rtol=1e-5)
        check_grads(jax.jit(call), (q, k, v, sinks, table), order=1, modes=("rev",), rtol=1e-6)


def test_gradients_of_blockwise_are_those_of_finite_differences(normal: Any) -> None:
    with jax.enable_x64(True):
        arrays = [normal(*shape, seed=n, dtype="float64") for n, shape in enumerate([(1, 3, 2, 3), (1, 5, 1, 3), (1, 5, 1, 2)])]
        check_grads(jax.jit(partial(attention, mask=masks.causal(), backend="blockwise", return_lse=True)), arrays, order=1, modes=("rev",), rtol=1e-6)


def test_hessian_and_jvp_of_the_reference_equal_those_of_jax_nn(normal: Any, close: Any) -> None:
    k, v, weights = normal(3, 1, 2), normal(3, 1, 2, seed=1), normal(3, 2, 2, seed=2)
    q, tangent = normal(3, 2, 2, seed=3), normal(3, 2, 2, seed=4)

    def ours(q: Any) -> Any:
        return (attention(q, k, v, mask=masks.causal(), backend="reference") * weights).sum()

    def theirs(q: Any) -> Any:
        return (jax.nn.dot_product_attention(q, k, v, is_causal=True) * weights).sum()

    @jax.jit
    def run(q: Any, tangent: Any) -> Any:
        return [(jax.hessian(f)(q), jax.jvp(f, (q,), (tangent,))) for f in (ours, theirs)]

    close(*run(q, tangent))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", [2**31 + 11, -3])
def test_dropout_is_the_hash_of_seed_head_and_positions(seed: int, backend: str, kept_by_hand: Any, oracle: Any, normal: Any, close: Any) -> None:
    dropout, allowed = Dropout(0.37, seed), KV_PLACES[:, None, None] <= Q_PLACES[:, None]
    keep = kept_by_hand(dropout, N, np.broadcast_to(Q_PLACES, (B, T)), KV_PLACES - 2)
    case = Case(
        lambda a: {"dropout": dropout, "mask": np.asarray(allowed), "q_positions": Q_PLACES, "kv_positions": KV_PLACES - 2},
        lambda a: {"keep": keep, "rate": 0.37, "allowed": allowed},
    )
    check_case(case, arrays_of(case, normal, jnp.float32), backend, oracle, normal, close)


def test_dropout_keeps_its_share_and_neighbours_are_unrelated() -> None:
    from pallas_kernels.flash.functions import Index

    place = np.arange(211, dtype="int32")
    i = Index(np.int32(0), np.arange(7, dtype="int32")[:, None, None], place[:, None], place, place[:, None], place)
    kept = {seed: np.asarray(Dropout(0.3, seed, num_heads=7).keep(i), float) for seed in (0, 1)}
    for bits in kept.values():
        spread = np.sqrt(0.3 * 0.7 / bits.size)
        assert abs(bits.mean() - 0.7) < 5 * spread
        for axis in range(3):
            both = (bits - 0.7) * (np.roll(bits, 1, axis) - 0.7)
            assert abs(both.mean()) < 5 * 0.21 / np.sqrt(bits.size)
        assert np.abs(bits.mean(-1) - 0.7).max() < 0.7 * 0.3
    assert abs(((kept[0] - 0.7) * (kept[1] - 0.7)).mean()) < 5 * 0.21 / np.sqrt(kept[0].size)


def test_a_seed_may_be_an_array_of_any_width_and_is_taken_modulo_2_to_the_32(normal: Any) -> None:
    q, k, v = normal(5, 1, 3), normal(7, 1, 3, seed=1), normal(7, 1, 3, seed=2)

    @jax.jit
    def call(seeds: Any) -> Any:
        known = [attention(q, k, v, dropout=Dropout(0.5, seed)) for seed in (200, 2**32 + 200, 200 - 2**32, 201)]
        return *known, *(attention(q, k, v, dropout=Dropout(0.5, seed)) for seed in seeds)

    first, *others, unlike, a, b, c, d = call((np.uint8(200), np.int16([200]), np.uint32([[200]]), np.int64(200)))
    for other in (*others, a, b, c, d):
        np.testing.assert_array_equal(other, first)
    assert (unlike != first).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("more", [{}, {"score": scores.alibi(np.linspace(0.1, 0.9, N, dtype="float32")), "dropout": Dropout(0.25, 11)}], ids=["plain", "all"])
def test_keys_and_queries_may_be_shuffled_with_their_positions(more: Any, backend: str, normal: Any, close: Any) -> None:
    q, k, v = normal(B, T, N, H), normal(B, S, K, H, seed=1), normal(B, S, K, Hv, seed=2)
    if dict(explain(q, k, v, **more).reasons)[backend] is not None:
        pytest.skip("refused, as tested above")
    order, other = KV_PLACES, Q_PLACES - 3
    inside = masks.causal() & masks.segments(IDS[0], IDS[1])
    rows = np.arange(B)[:, None]
    shuffled = masks.causal() & masks.segments(IDS[0][:, other], IDS[1][rows, order])
    call = jax.jit(partial(attention, backend=backend, return_lse=True, **more))
    o, lse = call(q, k, v, mask=inside)
    o2, lse2 = call(q[:, other], k[rows, order], v[rows, order], mask=shuffled, q_positions=other, kv_positions=order)
    close(o2, o[:, other])
    same_lse(close, lse2, np.asarray(lse)[:, :, other])


@pytest.mark.parametrize("backend", BACKENDS)
def test_integers_of_any_width_mean_the_same(backend: str, normal: Any, close: Any) -> None:
    q, k, v = normal(B, T, N, H), normal(B, S, K, H, seed=1), normal(B, S, K, Hv, seed=2)
    widths = ["int32", "int8", "int16", "int64", "uint8", "uint32"]
    known = [tuple(np.asarray(a, width) for a in (*IDS, LENGTHS, Q_PLACES, KV_PLACES)) for width in widths]

    @jax.jit
    def call(traced: Any) -> Any:
        def one(q_ids: Any, kv_ids: Any, lengths: Any, q_places: Any, kv_places: Any) -> Any:
            mask = masks.segments(q_ids, kv_ids) | masks.prefix(lengths) & masks.sliding_window(5, 3)
            return attention(q, k, v, mask=mask, q_positions=q_places, kv_positions=kv_places, backend=backend)

        return [one(*arrays) for arrays in (*known, *traced)]

    first, *others = call(known)
    for other in others:
        close(other, first)


def test_float32_stays_float32_under_x64(normal: Any) -> None:
    """numpy would make float64 of int32 * 0.5, and of float32 * int32."""
    with jax.enable_x64(True):
        q, k, v = normal(T, N, H), normal(S, K, H, seed=1), normal(S, K, Hv, seed=2)
        score = (lambda s, i: s + 0.5 * (i.k - i.q), scores.from_function(lambda s, i, a: s + a * i.k, a=(np.ones(N, "float32"), "N")), scores.softcap(9.0))
        for options in ({"score": score}, {"mask": masks.causal()}, {"dropout": Dropout(0.5, 2**32 - 1), "sinks": np.ones(N)}):
            out, gradients = jax.eval_shape(lambda q: jax.vjp(partial(attention, return_lse=True, **options), q, k, v), q)  # noqa: B023
            assert [a.dtype for a in (*out, *jax.tree.leaves(gradients)) if jnp.issubdtype(a.dtype, jnp.floating)].count(jnp.float64) == 0
