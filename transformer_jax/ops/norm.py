"""Normalisation over the last axis. Statistics are float32 (float64 for float64 input); the result has the input's dtype."""

from functools import partial

import jax

from transformer_jax.precision import wide


def layer_norm(x: jax.Array, scale: jax.Array | None = None, bias: jax.Array | None = None, *, eps: float = 1e-5) -> jax.Array:
    """scale * (x - mean) / sqrt(var + eps) + bias (Ba et al., arXiv:1607.06450, section 3).

    Args:
        x: `[..., D]`.
        scale, bias: `[D]`, or None for 1 and 0.
        eps: added to the variance.
    """
    y = _standardise(x.astype(wide(x.dtype)), eps, True)
    return _affine(y, scale, bias).astype(x.dtype)


def rms_norm(x: jax.Array, scale: jax.Array | None = None, *, eps: float = 1e-6) -> jax.Array:
    """scale * x / sqrt(mean(x^2) + eps) (Zhang and Sennrich, arXiv:1910.07467, section 3).

    Args:
        x: `[..., D]`.
        scale: `[D]`, or None for 1.
        eps: added to the mean square.
    """
    y = _standardise(x.astype(wide(x.dtype)), eps, False)
    return _affine(y, scale, None).astype(x.dtype)


def _affine(y: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    if scale is not None:
        y = y * scale.astype(y.dtype)
    return y if bias is None else y + bias.astype(y.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _standardise(x: jax.Array, eps: float, centred: bool) -> jax.Array:
    y, _ = _statistics(x, eps, centred)
    return y


@_standardise.defjvp
def _standardise_jvp(eps: float, centred: bool, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """dy = rstd * (dx - mean(dx) - y * mean(y * dx)): the backward pass keeps y and rstd, where plain differentiation would keep every step between."""
    (x,), (dx,) = primals, tangents
    y, rstd = _statistics(x, eps, centred)
    along = dx - y * (y * dx).mean(-1, keepdims=True)
    return y, rstd * (along - dx.mean(-1, keepdims=True) if centred else along)


def _statistics(x: jax.Array, eps: float, centred: bool) -> tuple[jax.Array, jax.Array]:
    centre = x - x.mean(-1, keepdims=True) if centred else x
    rstd = jax.lax.rsqrt((centre * centre).mean(-1, keepdims=True) + eps)
    return centre * rstd, rstd
