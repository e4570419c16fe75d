"""Matrix products."""

import math

import jax


def project(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None, *, axes: int = 1) -> jax.Array:
    """x.kernel + bias, contracting the last `axes` axes of x with the first ones of the kernel.

    One product of two matrices: XLA:CPU runs `[B * T, D]` twice as fast as `[B, T, D]`.

    Args:
        x: `[..., *in]`.
        kernel: `[*in, *out]`, cast to x's dtype.
        bias: `[*out]`, cast to x's dtype.

    Returns:
        `[..., *out]` in x's dtype.
    """
    lead, out = x.shape[: x.ndim - axes], kernel.shape[axes:]
    rows = x.reshape(math.prod(lead), math.prod(kernel.shape[:axes]))
    y = rows @ kernel.reshape(rows.shape[1], math.prod(out)).astype(x.dtype)
    if bias is not None:
        y = y + bias.reshape(-1).astype(x.dtype)
    return y.reshape(*lead, *out)
