"""Sinusoidal and rotary positions. Angles are float32 (float64 for float64 input), whatever x is."""

import math

import jax
import jax.numpy as jnp

from transformer_jax.precision import wide


def sinusoid(
    positions: jax.Array, features: int, *, base: float = 1e4, interleaved: bool = True, dtype: jax.typing.DTypeLike = jnp.float32
) -> jax.Array:  # fmt: skip
    """Column 2i holds sin(p / base^(2i / features)), column 2i + 1 the cosine (Vaswani et al., arXiv:1706.03762, section 3.5).

    Args:
        positions: integers `[...]`.
        features: even number of columns.
        base: the longest wavelength is nearly 2 pi times this.
        interleaved: otherwise column i holds the sine and column features / 2 + i its cosine.

    Returns:
        `[..., features]`.
    """
    angles = positions[..., None].astype(dtype) * frequencies(features, base, dtype)
    waves = jnp.sin(angles), jnp.cos(angles)
    return jnp.stack(waves, -1).reshape(*positions.shape, features) if interleaved else jnp.concatenate(waves, -1)


def frequencies(features: int, base: float, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """Radians per position, base^(-2i / features) for i < features / 2."""
    return base ** (-jnp.arange(0, features, 2, dtype=dtype) / features)


def ntk(features: int, base: float, *, factor: float, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """Frequencies of base * factor^(R / (R - 2)): the slowest is divided by the factor, the fastest stays (Peng et al., arXiv:2309.00071, section 3.1).

    Raises:
        ValueError: R = 2 features, whose one frequency no base changes.
    """
    if features <= 2:
        raise ValueError(f"ntk: features: expected more than 2 that turn, received {features}")
    return frequencies(features, base * factor ** (features / (features - 2)), dtype)


def yarn(
    features: int, base: float, *, factor: float, original_length: int, beta_fast: float, beta_slow: float, truncate: bool = True,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:  # fmt: skip
    """Frequencies, divided by the factor where they are slow (Peng et al., arXiv:2309.00071, section 3.2, with the ramp of the code that came with it).

    Pair i(b) = R ln(L / (2 pi b)) / (2 ln base) turns b times in the original length L. Up to i(beta_fast) pairs keep their frequency, from i(beta_slow) on it
    is divided, and between them the share that is divided grows linearly with i.

    Args:
        truncate: whether the two ends are rounded outwards to whole pairs.

    Raises:
        ValueError: a base that is not above 1, with which pairs do not slow down.
    """
    if not base > 1:
        raise ValueError(f"yarn: base: expected more than 1, received {base}")
    low, high = (features * math.log(original_length / (2 * math.pi * beta)) / (2 * math.log(base)) for beta in (beta_fast, beta_slow))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, features - 1)
    ramp = (jnp.arange(features // 2, dtype=dtype) - low) / max(high - low, 1e-3)
    return _slowed(frequencies(features, base, dtype), jnp.clip(ramp, 0, 1), factor)


def llama3(
    features: int, base: float, *, factor: float, low_freq_factor: float, high_freq_factor: float, original_length: int,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:  # fmt: skip
    """Frequencies, divided by the factor where they are slow (Llama 3.1, arXiv:2407.21783, released code).

    Pairs that turn at least `high_freq_factor` times in the original length keep their frequency, those that turn at most `low_freq_factor` times have it
    divided, and between them the share that is divided falls linearly with the number of turns.
    """
    rates = frequencies(features, base, dtype)
    ramp = (high_freq_factor - original_length * rates / (2 * math.pi)) / (high_freq_factor - low_freq_factor)
    return _slowed(rates, jnp.clip(ramp, 0, 1), factor)


def _slowed(rates: jax.Array, share: jax.Array, factor: float) -> jax.Array:
    return rates * (1 - share) + rates / factor * share


def rotate(x: jax.Array, positions: jax.Array, rates: jax.Array, amplitude: float = 1.0) -> jax.Array:
    """Rotary positions: the pair (x[i], x[i + R/2]) turns by the angle p * rates[i] (Su et al., arXiv:2104.09864, section 3.4.2).

    Args:
        x: `[B, T, N, H]`.
        positions: integers `[B, T]` or `[1, T]`.
        rates: radians per position `[R / 2]`; the first R <= H features turn, the rest stay.
        amplitude: factor on the cosines and sines, and so on what turns.

    Returns:
        x's shape and dtype.
    """
    half = rates.shape[0]
    angles = positions[:, :, None, None].astype(wide(x.dtype)) * rates.astype(wide(x.dtype))
    sin, cos = amplitude * jnp.sin(angles), amplitude * jnp.cos(angles)
    a, b = (part.astype(angles.dtype) for part in (x[..., :half], x[..., half : 2 * half]))
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)
    return jnp.concatenate([turned, x[..., 2 * half :]], -1)
