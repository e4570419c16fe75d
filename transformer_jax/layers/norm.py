"""Norms: none, layer norm, RMS norm."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.config import Config
from transformer_jax.layers.base import Build, check_positive
from transformer_jax.ops.norm import layer_norm, rms_norm


class Norm(Config):
    """Open base of norms."""

    def make(self, build: Build) -> nn.Module:
        """A linen module with `__call__(x) -> y`, over the last axis, whatever its size."""
        raise NotImplementedError(f"{type(self).__name__} must define make(build)")


@dataclass(frozen=True)
class NoNorm(Norm):
    """y = x."""

    def make(self, build: Build) -> nn.Module:
        return Identity()


@dataclass(frozen=True)
class LayerNorm(Norm):
    """scale * (x - mean) / sqrt(var + eps) + bias (arXiv:1607.06450)."""

    eps: float = 1e-5
    _: KW_ONLY
    scale: bool = True
    bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "eps")

    def make(self, build: Build) -> nn.Module:
        return LayerNormModule(self, build)


@dataclass(frozen=True)
class RMSNorm(Norm):
    """(offset + scale) * x / sqrt(mean(x^2) + eps) (arXiv:1910.07467). Gemma stores its scales less an offset of 1."""

    eps: float = 1e-6
    _: KW_ONLY
    offset: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "eps")

    def make(self, build: Build) -> nn.Module:
        return RMSNormModule(self, build)


class Identity(nn.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return x


class LayerNormModule(nn.Module):
    config: LayerNorm
    build: Build

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dtype = jnp.dtype(self.build.precision.params)
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], dtype) if self.config.scale else None
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], dtype) if self.config.bias else None
        return layer_norm(x, scale, bias, eps=self.config.eps)


class RMSNormModule(nn.Module):
    config: RMSNorm
    build: Build

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        offset = self.config.offset
        init: Any = nn.initializers.constant(1 - offset)
        scale = self.param("scale", init, x.shape[-1:], jnp.dtype(self.build.precision.params))
        return rms_norm(x, scale + offset if offset else scale, eps=self.config.eps)
