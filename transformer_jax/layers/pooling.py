"""Hidden states as they are, and one vector of a sequence."""

from dataclasses import KW_ONLY, dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.config import Config
from transformer_jax.layers.base import Build
from transformer_jax.layers.head import Head
from transformer_jax.precision import wide
from transformer_jax.typing import Hidden, Valid


class Pool(Config):
    """Open base of ways to make one vector of a sequence."""

    def __call__(self, x: Hidden, valid: Valid) -> jax.Array:
        """`[B, T, D]`, and `[B, T]`, False at padding, to `[B, D]`."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(x, valid)")

    def of(self, x: Hidden, valid: Valid | None) -> jax.Array:
        """The same; all tokens are valid where `valid` is None."""
        return self(x, jnp.ones(x.shape[:2], bool) if valid is None else valid)


@dataclass(frozen=True)
class FirstToken(Pool):
    """The first valid token's vector (BERT)."""

    def __call__(self, x: Hidden, valid: Valid) -> jax.Array:
        return jnp.take_along_axis(x, jnp.argmax(valid, -1)[:, None, None], 1)[:, 0]


@dataclass(frozen=True)
class LastToken(Pool):
    """The last valid token's vector, which in a causal model has seen all others (GPT, Radford et al. 2018, section 3.2)."""

    def __call__(self, x: Hidden, valid: Valid) -> jax.Array:
        last = x.shape[1] - 1 - jnp.argmax(valid[:, ::-1], -1)
        return jnp.take_along_axis(x, last[:, None, None], 1)[:, 0]


@dataclass(frozen=True)
class Mean(Pool):
    """The mean over the valid tokens, summed in float32 (Reimers and Gurevych, arXiv:1908.10084, section 3)."""

    def __call__(self, x: Hidden, valid: Valid) -> jax.Array:
        weights = valid.astype(wide(x.dtype))[..., None]
        return ((x * weights).sum(1) / jnp.maximum(weights.sum(1), 1)).astype(x.dtype)


@dataclass(frozen=True)
class NoHead(Head):
    """The model gives its last hidden state `[B, T, D]`, and no logits."""

    def make(self, build: Build, vocab_size: int) -> nn.Module:
        return NoHeadModule()


class NoHeadModule(nn.Module):
    def __call__(self, x: Hidden, table: jax.Array, valid: Valid | None) -> tuple[Hidden, None]:
        return x, None


@dataclass(frozen=True)
class SentenceEmbedding(Head):
    """A vector of the sequence, `[B, D]`, and no logits (Reimers and Gurevych, arXiv:1908.10084, section 3).

    Attributes:
        pool: what makes one vector of the sequence.
        normalize: whether it is divided by its Euclidean norm, so that products of vectors are cosines; one of only zeros stays.
    """

    pool: Pool = Mean()
    _: KW_ONLY
    normalize: bool = False

    def make(self, build: Build, vocab_size: int) -> nn.Module:
        return SentenceEmbeddingModule(self)


class SentenceEmbeddingModule(nn.Module):
    config: SentenceEmbedding

    def __call__(self, x: Hidden, table: jax.Array, valid: Valid | None) -> tuple[jax.Array, None]:
        y = self.config.pool.of(x, valid)
        if self.config.normalize:
            exact = y.astype(wide(y.dtype))
            squares = jnp.maximum((exact * exact).sum(-1, keepdims=True), 1e-24)
            y = (exact * jax.lax.rsqrt(squares)).astype(y.dtype)
        return y, None
