"""The fused loss against optax, in one chunk and in many."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from pallas_kernels.loss import linear_cross_entropy

M, D, V = 11, 5, 17
LABELS = np.random.default_rng(0).integers(0, V, M)
IGNORED = np.where(np.arange(M) % 4 == 1, -100, LABELS)
HELD = {"one chunk": 10**6, "one chunk, just": M * V, "ragged": 4 * V, "a row each": 1}


def arrays_of(normal: Any, dtype: Any = "float32") -> dict[str, Any]:
    weights = jnp.asarray(np.random.default_rng(4).uniform(0.2, 2, M), "float64" if dtype == "float64" else "float32")
    return {"x": normal(M, D, dtype=dtype), "kernel": normal(D, V, seed=1, dtype=dtype), "bias": normal(V, seed=2, dtype=dtype), "weights": weights}


def by_optax(arrays: Any, labels: Any, softcap: Any = None, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Any:
    """The same sums, the logits in memory."""
    logits = arrays["x"] @ arrays["kernel"]
    if "bias" in arrays:
        logits = logits + arrays["bias"]
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    weights = jnp.where(labels >= 0, arrays.get("weights", jnp.ones(M, logits.dtype)), 0)
    safe = jnp.maximum(labels, 0)
    loss = optax.softmax_cross_entropy(logits, optax.smooth_labels(jax.nn.one_hot(safe, V, dtype=logits.dtype), label_smoothing))
    total = weights @ (loss + z_loss * jax.nn.logsumexp(logits, -1) ** 2)
    nll = weights @ optax.softmax_cross_entropy_with_integer_labels(logits, safe)
    return total, nll, weights @ (logits.argmax(-1) == safe).astype(logits.dtype), weights.sum()


CASES: dict[str, tuple[set[str], Any, dict[str, float]]] = {
    "plain": ({"x", "kernel"}, LABELS, {}),
    "all": ({"x", "kernel", "bias", "weights"}, IGNORED, {"softcap": 1.5, "label_smoothing": 0.2, "z_loss": 0.03}),
    "smoothed": ({"x", "kernel", "bias"}, LABELS, {"label_smoothing": 0.1}),
    "weighted z-loss": ({"x", "kernel", "weights"}, IGNORED, {"z_loss": 0.5}),
}


def ours(arrays: Any, labels: Any, **options: Any) -> Any:
    rest = {name: array for name, array in arrays.items() if name not in ("x", "kernel")}
    return linear_cross_entropy(arrays["x"], arrays["kernel"], labels, **rest, **options)


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("name", CASES)
def test_equals_optax_with_every_gradient(name: str, held: str, normal: Any, close: Any) -> None:
    names, labels, options = CASES[name]
    arrays = {key: array for key, array in arrays_of(normal).items() if key in names}

    @jax.jit
    def run(arrays: Any) -> Any:
        sums, gradients = jax.value_and_grad(lambda a: (lambda s: (3.5 * s.total, s))(ours(a, labels, logits_held=HELD[held], **options)), has_aux=True)(arrays)
        expected, expected_gradients = jax.value_and_grad(lambda a: (lambda s: (3.5 * s[0], s))(by_optax(a, labels, **options)), has_aux=True)(arrays)
        return (sums[0], tuple(sums[1]), gradients), (expected[0], expected[1], expected_gradients)

    close(*run(arrays), times=2)


@given(rows=st.integers(1, 23), classes=st.integers(1, 13), held=st.integers(1, 200))
def test_any_number_of_rows_in_any_number_of_chunks(rows: int, classes: int, held: int, normal: Any, close: Any) -> None:
    x, kernel = normal(rows, 3), normal(3, classes, seed=1)
    labels = np.random.default_rng(rows).integers(-1, classes, rows)
    actual = jax.jit(partial(linear_cross_entropy, logits_held=held))(x, kernel, labels)
    logits = np.asarray(x, float) @ np.asarray(kernel, float)
    nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, np.maximum(labels, 0)[:, None], -1)[:, 0]
    seen = labels >= 0
    close(tuple(actual), (nll[seen].sum(), nll[seen].sum(), (logits.argmax(-1) == labels)[seen].sum(), seen.sum()), times=2)


@pytest.mark.parametrize(("held", "expected"), [(4 * V, False), (M * V, True)])
def test_in_chunks_the_logits_are_never_all_held(held: int, expected: bool, shapes_in: Any, normal: Any) -> None:
    def loss(arrays: Any) -> Any:
        return ours(arrays, LABELS, logits_held=held, label_smoothing=0.1, softcap=5.0).total

    shapes = shapes_in(jax.make_jaxpr(jax.value_and_grad(loss))(arrays_of(normal)))
    assert (max(int(np.prod(shape)) for shape in shapes if V in shape) >= M * V) is expected


@pytest.mark.parametrize("held", ["one chunk", "ragged"])
def test_derivatives_are_those_of_finite_differences(held: str, normal: Any) -> None:
    with jax.enable_x64(True):
        call = jax.jit(lambda a: ours(a, IGNORED, logits_held=HELD[held], softcap=2.0, label_smoothing=0.1, z_loss=0.1).total)
        check_grads(call, (arrays_of(normal, "float64"),), order=2 if held == "one chunk" else 1, modes=("rev",), rtol=1e-5)


@pytest.mark.parametrize("held", ["one chunk", "ragged"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_loss_of_short_floats_is_float32(dtype: str, held: str, normal: Any, close: Any) -> None:
    """A float32 kernel is cast to x's dtype and its gradient comes back in float32."""
    arrays = arrays_of(normal, dtype) | {"kernel": normal(D, V, seed=1)}
    value, gradients = jax.jit(jax.value_and_grad(lambda a: ours(a, LABELS, logits_held=HELD[held]).total))(arrays)
    assert value.dtype == jnp.float32
    assert jax.tree.map(lambda a: a.dtype, gradients) == jax.tree.map(lambda a: a.dtype, arrays)
    exact = {name: jnp.asarray(a.astype(dtype) if name == "kernel" else a, "float32") for name, a in arrays.items()}
    expected, expected_gradients = jax.jit(jax.value_and_grad(lambda a: by_optax(a, LABELS)[0]))(exact)
    close(value, expected, times=2)
    close(jax.tree.map(lambda a: a.astype(dtype), gradients), expected_gradients)


@pytest.mark.parametrize("held", ["one chunk", "ragged"])
def test_only_the_total_has_a_gradient(held: str, normal: Any) -> None:
    def others(arrays: Any) -> Any:
        sums = ours(arrays, LABELS, logits_held=HELD[held])
        return sums.nll + sums.correct + sums.weight

    assert all((g == 0).all() for g in jax.tree.leaves(jax.jit(jax.grad(others))(arrays_of(normal))))


@pytest.mark.parametrize("held", ["one chunk", "ragged"])
def test_a_label_beyond_the_classes_gives_nan_a_negative_one_nothing(held: str, normal: Any) -> None:
    x, kernel = normal(M, D), normal(D, V, seed=1)
    call = jax.jit(partial(linear_cross_entropy, logits_held=HELD[held]))
    assert np.isnan(call(x, kernel, np.where(np.arange(M) == 7, V, LABELS)).total)
    nothing = call(x, kernel, np.full(M, -1))
    assert [float(a) for a in nothing] == [0, 0, 0, 0]


@pytest.mark.parametrize("width", ["int8", "uint8", "int64", "uint32"])
def test_labels_of_any_width(width: str, normal: Any) -> None:
    x, kernel = normal(M, D), normal(D, V, seed=1)
    call = jax.jit(linear_cross_entropy)
    for a, b in zip(call(x, kernel, LABELS.astype(width)), call(x, kernel, LABELS.astype("int32")), strict=True):
        assert a.dtype == jnp.float32 and a == b


def test_under_vmap_and_scan_in_chunks(normal: Any, close: Any) -> None:
    x, kernel = normal(3, M, D), normal(D, V, seed=1)

    def gradients(held: int) -> Any:
        def one(x: Any) -> Any:
            return jax.value_and_grad(lambda x, kernel: linear_cross_entropy(x, kernel, LABELS, logits_held=held).total, (0, 1))(x, kernel)

        return jax.vmap(one)(x), jax.lax.scan(lambda n, x: (n, one(x)), 0, x)[1]

    mapped, scanned = jax.jit(gradients, static_argnums=0)(3 * V)
    expected, _ = jax.jit(gradients, static_argnums=0)(10**6)
    close(mapped, expected)
    close(scanned, expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": np.zeros((2, M, D))}, r"expected x \[M, D\], kernel \[D, V\], labels \[M\], received \(2, 11, 5\), \(5, 17\), \(11,\)"),
        ({"kernel": np.zeros((V, D))}, r"received \(11, 5\), \(17, 5\), \(11,\)"),
        ({"labels": LABELS[:3]}, r"received \(11, 5\), \(5, 17\), \(3,\)"),
        ({"label_smoothing": 1.0}, r"label_smoothing: expected a number in \[0, 1\), received 1.0"),
        ({"label_smoothing": -0.1}, r"label_smoothing: expected a number in \[0, 1\), received -0.1"),
        ({"weights": np.ones(1)}, r"weights: expected shape \(11,\), received \(1,\)"),
        ({"weights": np.ones(V)}, r"weights: expected shape \(11,\), received \(17,\)"),
        ({"bias": np.ones(1)}, r"bias: expected shape \(17,\), received \(1,\)"),
        ({"bias": np.ones((M, V))}, r"bias: expected shape \(17,\), received \(11, 17\)"),
    ],
)
def test_refuses(change: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        linear_cross_entropy(**{"x": np.zeros((M, D), "float32"), "kernel": np.zeros((D, V), "float32"), "labels": LABELS, **change})
