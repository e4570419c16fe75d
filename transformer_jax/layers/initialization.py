"""Published recipes for initial parameters, chosen by what a parameter does."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax

from transformer_jax.config import Config

Role: TypeAlias = str
Initializer = Callable[..., Any]

_RESIDUAL = ("attention_out", "down")


class Initialization(Config):
    """Open base of recipes. Biases start at 0 and scales at 1 in all of them."""

    def kernel(self, role: Role, fan_in: int, fan_out: int, depth: int) -> Initializer:
        """`init(key, shape, dtype)` for a parameter.

        Args:
            role: what it does: "embedding", "position", "query", "key", "value", "latent", "up", "router" and "head" read; "attention_out" and "down" write
                to the residual stream. A part of your own may have a role of its own, which a recipe that does not know it treats as one that reads.
            fan_in, fan_out: numbers of inputs and outputs. An embedding maps V inputs to D outputs.
            depth: residual sublayers in the stack.
        """
        raise NotImplementedError(f"{type(self).__name__} must define kernel(role, fan_in, fan_out, depth)")


@dataclass(frozen=True)
class NormalInit(Initialization):
    """Normal with one standard deviation (BERT, Llama)."""

    stddev: float = 0.02

    def kernel(self, role: Role, fan_in: int, fan_out: int, depth: int) -> Initializer:
        return jax.nn.initializers.normal(self.stddev)


@dataclass(frozen=True)
class GPT2Init(Initialization):
    """Normal; what writes to the residual stream is scaled by 1 / sqrt(depth) (Radford et al. 2019, section 2.3)."""

    stddev: float = 0.02

    def kernel(self, role: Role, fan_in: int, fan_out: int, depth: int) -> Initializer:
        return jax.nn.initializers.normal(self.stddev / math.sqrt(depth) if role in _RESIDUAL else self.stddev)


@dataclass(frozen=True)
class XavierInit(Initialization):
    """Uniform within sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010, equation 16); embeddings normal with 1 / sqrt(D), as for the 2017 transformer."""

    def kernel(self, role: Role, fan_in: int, fan_out: int, depth: int) -> Initializer:
        if role in ("embedding", "position"):
            return jax.nn.initializers.normal(fan_out**-0.5)
        limit = math.sqrt(6 / (fan_in + fan_out))

        def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -limit, limit)

        return uniform


@dataclass(frozen=True)
class T5Init(Initialization):
    """Normal with 1 / sqrt(fan_in), queries smaller by 1 / sqrt(head_dim) in place of a scale, embeddings 1 (Raffel et al., arXiv:1910.10683, released code).

    Pair it with `scale=1.0` in attention.
    """

    head_dim: int = 64

    def kernel(self, role: Role, fan_in: int, fan_out: int, depth: int) -> Initializer:
        if role in ("embedding", "position"):
            return jax.nn.initializers.normal(1.0)
        return jax.nn.initializers.normal((fan_in * (self.head_dim if role == "query" else 1)) ** -0.5)
