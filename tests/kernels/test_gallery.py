"""Each variant beside its paper's formula in numpy, and on every backend beside the reference: outputs and the gradients of what is learned."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import attention, gallery, masks

B, N, K, H = 2, 4, 2, 8
HEIGHT, WIDTH = 15, 20
T = HEIGHT * WIDTH
TILE = 128, 128  # 3 x 3 tiles, the last ones not full

i, j = np.arange(T)[:, None], np.arange(T)


@dataclass(frozen=True)
class Variant:
    """`options(learned, ids, q)` of a call, and in numpy what the paper says: `allowed(ids)` and `changed(s, learned, ids, q)`, each over [B, N, T, T]."""

    options: Callable[..., Any]
    allowed: Callable[..., Any] = lambda ids: j <= i
    changed: Callable[..., Any] = lambda s, learned, ids, q: s
    learned: Callable[..., Any] = lambda rng: {}
    scale: float | None = None


def same(ids: Any) -> Any:
    return (ids[:, :, None] == ids[:, None, :])[:, None]


def by_head(a: Any) -> Any:
    return np.asarray(a, np.float64)[:, None, None]


def strided(ids: Any) -> Any:
    """Lists of keys as in the paper: A1 = {t, ..., i} from t = max(0, i - l), A2 = {j: (i - j) mod l = 0}."""
    allowed, stride = np.zeros((T, T), bool), 17
    for q in range(T):
        allowed[q, max(0, q - stride) : q + 1] = True
        allowed[q, q::-stride] = True
    return allowed


def sparsified(ids: Any) -> Any:
    """Rows of each segment picked by slices: Q_i = [Q_(iw + s), Q_(iw + s + r), ...], s = head mod r."""
    allowed = np.zeros((N, T, T), bool)
    for head in range(N):
        for start in range(0, T, 60):
            rows = np.arange(start, min(start + 60, T))[head % 3 :: 3]
            allowed[head][np.ix_(rows, rows)] = True
    return allowed


def shifted_windows(ids: Any) -> Any:
    """Of all windows of 13 keys, the one whose middle is nearest."""
    starts = np.arange(T - 12)
    first = starts[np.abs(starts[None] + 6 - i).argmin(1)][:, None]
    return (first <= j) & (j < first + 13)


def streamed(ids: Any) -> Any:
    """What is left in the cache when sinks stay and the others are evicted, oldest first."""
    allowed, recent = np.zeros((T, T), bool), []
    for q in range(T):
        recent = [*recent, q][-21:]
        allowed[q, list(range(min(4, q + 1))) + recent] = True
    return allowed


def in_image_windows(ids: Any) -> Any:
    image = np.arange(T).reshape(HEIGHT // 5, 5, WIDTH // 5, 5)
    allowed = np.zeros((T, T), bool)
    for window in image.transpose(0, 2, 1, 3).reshape(-1, 25):
        allowed[np.ix_(window, window)] = True
    return allowed


def by_displacement(s: Any, learned: Any, ids: Any, q: Any) -> Any:
    """B taken from B^ `[2M - 1, 2M - 1]` within each window; elsewhere it does not matter."""
    table = np.asarray(learned["table"], np.float64).reshape(N, 9, 9)
    image = np.arange(T).reshape(HEIGHT // 5, 5, WIDTH // 5, 5).transpose(0, 2, 1, 3).reshape(-1, 5, 5)
    s = s.copy()
    for window in image:
        for (y, x), a in np.ndenumerate(window):
            for (v, u), b in np.ndenumerate(window):
                s[:, :, a, b] += table[:, y - v + 4, x - u + 4]
    return s


def t5_biased(s: Any, learned: Any, ids: Any, q: Any) -> Any:
    """T5's `_relative_position_bucket`, 8 buckets to each direction, in float32 as published."""
    distance = np.abs(j - i)
    far = np.float32(4) + np.log(np.maximum(distance, 1).astype(np.float32) / 4) / np.log(128 / 4) * 4
    bucket = np.where(distance < 4, distance, np.minimum(far.astype(int), 7)) + 8 * (j > i)
    return s + np.asarray(learned["table"], np.float64)[:, bucket]


def fire_biased(s: Any, learned: Any, ids: Any, q: Any) -> Any:
    c, threshold, w, b, u = (np.asarray(learned[name], np.float64) for name in ("c", "threshold", "w", "b", "u"))
    x = np.log(c * np.maximum(i - j, 0) + 1) / np.log(c * np.maximum(i, threshold) + 1)
    hidden = np.maximum(x[..., None] * w + b, 0)
    return s + (hidden @ u.T).transpose(2, 0, 1)


def decayed(s: Any, learned: Any, ids: Any, q: Any) -> Any:
    """D_ij = log of f_(j+1) ... f_i, gates multiplied up row by row."""
    gates = np.exp(np.asarray(learned["log_gates"], np.float64))
    product = np.zeros((B, N, T, T))
    for row in range(T):
        product[:, :, row, :row] = product[:, :, row - 1, :row] * gates[:, :, row, None]
        product[:, :, row, row] = 1
    return s + np.log(np.where(product > 0, product, 1))


def by_segment(s: Any, learned: Any, ids: Any, q: Any) -> Any:
    offset, encodings = (np.asarray(learned[name], np.float64) for name in ("offset", "encodings"))
    which = np.where(same(ids), 0, 1)[:, 0]
    return s + np.einsum("btnh,btsnh->bnts", q + offset, encodings[which]) / np.sqrt(H)


def normal(rng: Any, *shape: int) -> Any:
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def fire_learned(rng: Any) -> dict[str, Any]:
    return {"c": jnp.float32(0.3), "threshold": jnp.float32(70), "w": normal(rng, 6), "b": normal(rng, 6), "u": normal(rng, N, 6)}


VARIANTS = {
    "packed": Variant(lambda p, ids, q: gallery.packed(ids), lambda ids: same(ids) & (j <= i)),
    "prefix_lm": Variant(lambda p, ids, q: gallery.prefix_lm(np.array([150, 3])), lambda ids: (j <= i) | (j < np.array([150, 3])[:, None, None, None])),
    "sparse_transformer": Variant(lambda p, ids, q: gallery.sparse_transformer(17), strided),
    "longnet": Variant(lambda p, ids, q: gallery.longnet(60, 3), sparsified),
    "streaming_llm": Variant(lambda p, ids, q: gallery.streaming_llm(4, 21), streamed),
    "neighborhood": Variant(lambda p, ids, q: gallery.neighborhood(T, 13), shifted_windows),
    "gemma_2": Variant(lambda p, ids, q: gallery.gemma_2(2.0, 40), lambda ids: (j <= i) & (i - j < 40), lambda s, p, ids, q: 2 * np.tanh(s / 2)),
    "gpt_oss": Variant(lambda p, ids, q: gallery.gpt_oss(p["sinks"], 40), lambda ids: (j <= i) & (i - j < 40), learned=lambda rng: {"sinks": normal(rng, N)}),
    "alibi": Variant(lambda p, ids, q: gallery.alibi(N), changed=lambda s, p, ids, q: s - by_head([2**-2, 2**-4, 2**-6, 2**-8]) * (i - j)),
    "t5": Variant(
        lambda p, ids, q: gallery.t5(p["table"], bidirectional=True),
        lambda ids: True,
        t5_biased,
        lambda rng: {"table": normal(rng, N, 16)},
        scale=1.0,
    ),
    "kerple": Variant(
        lambda p, ids, q: gallery.kerple(p["r1"], p["r2"]),
        changed=lambda s, p, ids, q: s - by_head(p["r1"]) * np.log(1 + by_head(p["r2"]) * np.abs(i - j)),
        learned=lambda rng: {"r1": jnp.exp(normal(rng, N)), "r2": jnp.exp(normal(rng, N))},
    ),
    "fire": Variant(lambda p, ids, q: gallery.fire(**p), changed=fire_biased, learned=fire_learned),
    "forgetting": Variant(
        lambda p, ids, q: gallery.forgetting(p["log_gates"], ids),
        lambda ids: same(ids) & (j <= i),
        decayed,
        lambda rng: {"log_gates": jax.nn.log_sigmoid(2 + normal(rng, B, N, T))},
    ),
    "xlnet_segments": Variant(
        lambda p, ids, q: gallery.xlnet_segments(q, p["offset"], p["encodings"], ids),
        lambda ids: True,
        by_segment,
        lambda rng: {"offset": normal(rng, N, H), "encodings": normal(rng, 2, N, H)},
    ),
    "swin": Variant(lambda p, ids, q: gallery.swin(p["table"], 5, HEIGHT, WIDTH), in_image_windows, by_displacement, lambda rng: {"table": normal(rng, N, 81)}),
}


def inputs(variant: Variant) -> tuple[Any, Any, dict[str, Any]]:
    """ids, the cotangent of o, and all that has gradients."""
    rng = np.random.default_rng(0)
    ids = np.sort(rng.integers(0, 4, (B, T)))
    floats = {"q": normal(rng, B, T, N, H), "k": normal(rng, B, T, K, H), "v": normal(rng, B, T, K, H), **variant.learned(rng)}
    return ids, normal(rng, B, T, N, H), floats


def call(variant: Variant, ids: Any, floats: dict[str, Any], **how: Any) -> Any:
    learned = {name: a for name, a in floats.items() if name not in "qkv"}
    return attention(floats["q"], floats["k"], floats["v"], **variant.options(learned, ids, floats["q"]), **how)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_what_its_paper_says(name, oracle, close):
    variant = VARIANTS[name]
    ids, _, floats = inputs(variant)
    q, k, v = (np.asarray(floats[a], np.float64) for a in "qkv")
    expected = oracle(
        q, k, v, scale=variant.scale, allowed=variant.allowed(ids), score=lambda s: (variant.changed(s, floats, ids, q), 1.0), sinks=floats.get("sinks")
    )
    o, lse = call(variant, ids, floats, backend="reference", return_lse=True)
    some = np.isfinite(expected.lse)
    assert (np.isfinite(lse) == some).all()
    close(o, expected.o)
    close(np.where(some, lse, 0).astype(np.float32), np.where(some, expected.lse, 0))


# Each takes its time to compile: those with an array of every kind are always run.
ALWAYS = {"packed", "kerple", "swin", "forgetting"}
ON_BACKENDS = [
    pytest.param(name, backend, marks=[] if name in ALWAYS else [pytest.mark.slow]) for backend in ("blockwise", "tpu") for name in VARIANTS
]


@pytest.mark.parametrize(("name", "backend"), ON_BACKENDS)
def test_a_backend_gives_the_reference_and_its_gradients(name, backend, close):
    variant = VARIANTS[name]
    ids, cotangent, floats = inputs(variant)

    def value_and_gradients(**how: Any) -> Any:
        def o_and_back(floats: dict[str, Any]) -> Any:
            o, back = jax.vjp(partial(call, variant, ids, **how), floats)
            return o, back(cotangent)[0]

        return jax.jit(o_and_back)(floats)

    o, gradients = value_and_gradients(backend=backend, tile=TILE)
    expected, wanted = value_and_gradients(backend="reference")
    close(o, expected)
    for gradient, want in zip(gradients.values(), wanted.values()):
        assert np.abs(want).max() > 1e-3
        close(gradient, want, times=4)


def test_all_variants_are_here_each_in_ten_lines():
    assert set(VARIANTS) == set(gallery.__all__)
    blocks, helpers = {}, 0
    for function in (f for f in vars(gallery).values() if inspect.isfunction(f) and f.__module__ == gallery.__name__):
        lines = len(inspect.getsource(function).splitlines())
        if function.__name__.startswith("_"):
            helpers += lines
        else:
            blocks[function.__name__], helpers = helpers + lines, 0
    assert set(blocks) == set(VARIANTS)
    assert max(blocks.values()) <= 10, blocks


def test_a_variant_made_twice_is_the_same():
    for make in (partial(gallery.longnet, 60, 3), partial(gallery.neighborhood, T, 13), partial(gallery.sparse_transformer, 17)):
        assert make() == make()
    table = np.zeros((N, 81), np.float32)
    assert gallery.swin(table, 5, HEIGHT, WIDTH)["score"] == gallery.swin(table, 5, HEIGHT, WIDTH)["score"]


def test_t5_is_causal_unless_it_looks_ahead():
    table = np.zeros((N, 16), np.float32)
    assert gallery.t5(table, bidirectional=True)["mask"] is None
    assert gallery.t5(table, bidirectional=False)["mask"] == masks.causal()
