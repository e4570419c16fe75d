"""Sinusoidal and rotary positions. Angles are float32 (float64 for float64 input), whatever x is."""

import jax
import jax.numpy as jnp

from transformer_jax.precision import wide


def sinusoid(positions: jax.Array, features: int, *, base: float = 1e4, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """Column 2i holds sin(p / base^(2i / features)), column 2i + 1 the cosine (Vaswani et al., arXiv:1706.03762, section 3.5).

    Args:
        positions: integers `[...]`.
        features: even number of columns.
        base: the longest wavelength is 2 pi times this.

    Returns:
        `[..., features]`.
    """
    angles = positions[..., None].astype(dtype) * frequencies(features, base, dtype)
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1).reshape(*positions.shape, features)


def frequencies(features: int, base: float, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """Radians per position, base^(-2i / features) for i < features / 2."""
    return base ** (-jnp.arange(0, features, 2, dtype=dtype) / features)


def rotate(x: jax.Array, positions: jax.Array, rates: jax.Array) -> jax.Array:
    """Rotary positions: the pair (x[i], x[i + R/2]) turns by the angle p * rates[i] (Su et al., arXiv:2104.09864, section 3.4.2).

    Args:
        x: `[B, T, N, H]`.
        positions: integers `[B, T]` or `[1, T]`.
        rates: radians per position `[R / 2]`; the first R <= H features turn, the rest stay.

    Returns:
        x's shape and dtype.
    """
    half = rates.shape[0]
    angles = positions[:, :, None, None].astype(wide(x.dtype)) * rates.astype(wide(x.dtype))
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    a, b = (part.astype(angles.dtype) for part in (x[..., :half], x[..., half : 2 * half]))
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)
    return jnp.concatenate([turned, x[..., 2 * half :]], -1)
