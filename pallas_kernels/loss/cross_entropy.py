"""Cross-entropy of softcap(x.kernel + bias), without ever holding all the logits.

Rows are taken a chunk at a time. Where there are several chunks, each one's gradient is computed along with its loss and kept in place of its logits: three
products in all, and `[chunk, V]` in memory in place of `[M, V]`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

LOGITS_HELD = 2**22


class CrossEntropy(NamedTuple):
    """Sums over the rows that count, float32 (float64). Only `total` is differentiable.

    Attributes:
        total: of weight * (loss with smoothing + z-loss), what is minimised.
        nll: of weight * -log p(label), in nats.
        correct: of weight where the label is the likeliest.
        weight: of weights.
    """

    total: jax.Array
    nll: jax.Array
    correct: jax.Array
    weight: jax.Array


def linear_cross_entropy(
    x: jax.Array,
    kernel: jax.Array,
    labels: jax.Array,
    *,
    weights: jax.Array | None = None,
    bias: jax.Array | None = None,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logits_held: int = LOGITS_HELD,
) -> CrossEntropy:
    """Cross-entropy of a linear layer's logits.

        z = softcap(x.kernel + bias)    lse = log sum exp z    loss = lse - (1 - a) z[label] - a mean(z) + z_loss * lse^2

    Args:
        x: `[M, D]`, one row a token.
        kernel: `[D, V]`, cast to x's dtype; products accumulate in float32, and logits and loss are float32 (float64 for float64).
        labels: integers `[M]`; negative ones are ignored, those beyond V give NaN.
        weights: floats `[M]`, 1 unless given.
        bias: `[V]`.
        softcap: z becomes softcap * tanh(z / softcap).
        label_smoothing: a, in [0, 1) (Szegedy et al., arXiv:1512.00567, section 7).
        z_loss: weight of lse^2 (Chowdhery et al., arXiv:2204.02311, section 5).
        logits_held: the most logits to hold; up to it there is one chunk, and derivatives of any kind and order, beyond it reverse mode once.

    Returns:
        A `CrossEntropy` of sums; the mean is total / weight.

    Raises:
        ValueError: shapes that do not fit, or a rate out of range.
    """
    if x.ndim != 2 or kernel.ndim != 2 or x.shape[1] != kernel.shape[0] or labels.shape != x.shape[:1]:
        raise ValueError(f"expected x [M, D], kernel [D, V], labels [M], received {x.shape}, {kernel.shape}, {labels.shape}")
    for name, array, shape in (("weights", weights, labels.shape), ("bias", bias, kernel.shape[1:])):
        if array is not None and array.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, received {array.shape}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing: expected a number in [0, 1), received {label_smoothing}")
    exact = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
    weights = jnp.ones(labels.shape, exact) if weights is None else weights.astype(exact)
    weights = jnp.where(labels < 0, 0, weights)
    how = _How(softcap, label_smoothing, z_loss)
    rows, M = max(1, logits_held // kernel.shape[1]), x.shape[0]
    if rows >= M:
        return _chunk_loss(how, (x, kernel, bias), labels, weights)
    chunks = -(-M // rows)
    rows = -(-M // chunks)

    def split(a: jax.Array) -> jax.Array:
        return jnp.pad(a, [(0, chunks * rows - M)] + [(0, 0)] * (a.ndim - 1)).reshape(chunks, rows, *a.shape[1:])

    return _in_chunks(how, (split(x), kernel, bias), split(labels), split(weights))


class _How(NamedTuple):
    softcap: float | None
    label_smoothing: float
    z_loss: float


def _chunk_loss(how: _How, arrays: Any, labels: jax.Array, weights: jax.Array) -> CrossEntropy:
    x, kernel, bias = arrays
    logits = jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=weights.dtype)
    if bias is not None:
        logits = logits + bias.astype(logits.dtype)
    if how.softcap is not None:
        logits = how.softcap * jnp.tanh(logits / how.softcap)
    lse = jax.nn.logsumexp(logits, -1)
    ignored = jnp.maximum(labels, 0)
    picked = jnp.take_along_axis(logits, ignored[:, None], -1, mode="fill", fill_value=jnp.nan)[:, 0]
    loss = lse - (1 - how.label_smoothing) * picked
    if how.label_smoothing:
        loss = loss - how.label_smoothing * logits.mean(-1)
    if how.z_loss:
        loss = loss + how.z_loss * lse**2
    seen = (weights * (lse - picked)).sum(), (weights * (jnp.argmax(logits, -1) == labels)).sum(), weights.sum()
    return CrossEntropy((weights * loss).sum(), *jax.lax.stop_gradient(seen))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_chunks(how: _How, arrays: Any, labels: jax.Array, weights: jax.Array) -> CrossEntropy:
    x, kernel, bias = arrays

    def one(sums: CrossEntropy, part: Any) -> tuple[CrossEntropy, None]:
        return jax.tree.map(jnp.add, sums, _chunk_loss(how, (part[0], kernel, bias), *part[1:])), None

    sums, _ = jax.lax.scan(one, _zeros(weights), (x, labels, weights))
    return sums


def _in_chunks_forward(how: _How, arrays: Any, labels: jax.Array, weights: jax.Array) -> tuple[CrossEntropy, Any]:
    x, kernel, bias = arrays
    exact = weights.dtype

    def loss(arrays: Any, labels: jax.Array, weights: jax.Array) -> tuple[jax.Array, CrossEntropy]:
        sums = _chunk_loss(how, arrays, labels, weights)
        return sums.total, sums

    def one(so_far: Any, part: Any) -> tuple[Any, Any]:
        sums, shared = so_far
        (_, mine), ((dx, *d_shared), d_weights) = jax.value_and_grad(loss, (0, 2), has_aux=True)((part[0], kernel, bias), *part[1:])
        return (jax.tree.map(jnp.add, sums, mine), jax.tree.map(lambda a, b: a + b.astype(exact), shared, d_shared)), (dx, d_weights)

    start = jax.tree.map(lambda a: jnp.zeros(a.shape, exact), [kernel, bias])
    (sums, (d_kernel, d_bias)), (dx, d_weights) = jax.lax.scan(one, (_zeros(weights), start), (x, labels, weights))
    like = jax.tree.map(lambda a: jnp.zeros((0,), a.dtype), arrays)
    return sums, ((dx, d_kernel, d_bias), d_weights, like)


def _in_chunks_backward(how: _How, saved: Any, cotangents: CrossEntropy) -> tuple[Any, None, jax.Array]:
    gradients, d_weights, like = saved
    return jax.tree.map(lambda g, a: (g * cotangents.total).astype(a.dtype), gradients, like), None, d_weights * cotangents.total


_in_chunks.defvjp(_in_chunks_forward, _in_chunks_backward)


def _zeros(weights: jax.Array) -> CrossEntropy:
    return CrossEntropy(*(jnp.zeros((), weights.dtype),) * 4)
