"""Activations by name."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """x * Phi(x), exact (Hendrycks and Gimpel, arXiv:1606.08415). The backward pass keeps one array, the slope."""
    return x * _normal_cdf(x)


@gelu.defjvp
def _gelu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    cdf = _normal_cdf(x)
    density = jnp.exp(-0.5 * x * x) * (2 * math.pi) ** -0.5
    return x * cdf, (cdf + x * density) * dx


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5)


@jax.custom_jvp
def gelu_tanh(x: jax.Array) -> jax.Array:
    """GELU's tanh approximation (the same paper, section 2). The backward pass keeps one array, the slope."""
    return 0.5 * x * (1 + jnp.tanh(_tanh_argument(x)))


@gelu_tanh.defjvp
def _gelu_tanh_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    t = jnp.tanh(_tanh_argument(x))
    slope = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * (2 / math.pi) ** 0.5 * (1 + 3 * 0.044715 * x * x)
    return 0.5 * x * (1 + t), slope * dx


def _tanh_argument(x: jax.Array) -> jax.Array:
    return (2 / math.pi) ** 0.5 * x * (1 + 0.044715 * x * x)


def quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x), GELU's sigmoid approximation (the same paper, section 2)."""
    return x * jax.nn.sigmoid(1.702 * x)


def squared_relu(x: jax.Array) -> jax.Array:
    """max(x, 0)^2 (So et al., arXiv:2109.08668)."""
    return jnp.square(jax.nn.relu(x))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "silu": jax.nn.silu,
    "squared_relu": squared_relu,
    "tanh": jnp.tanh,
}
