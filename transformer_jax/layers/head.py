"""From hidden states to logits."""

import math
from dataclasses import KW_ONLY, dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from transformer_jax.config import Config
from transformer_jax.layers.base import Build, check_positive
from transformer_jax.precision import wide
from transformer_jax.typing import Hidden, Logits


class Unembedding(struct.PyTreeNode):
    """What maps hidden states to logits: softcap(x.kernel + bias).

    Attributes:
        kernel: `[D, V]`.
        bias: `[V]` or None.
        softcap: logits become softcap * tanh(logits / softcap); None for no cap.
    """

    kernel: jax.Array
    bias: jax.Array | None = None
    softcap: float | None = struct.field(pytree_node=False, default=None)

    def __call__(self, x: Hidden) -> Logits:
        """Logits in float32 (float64) from products in x's dtype."""
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        logits = jnp.matmul(rows, self.kernel.astype(x.dtype), preferred_element_type=wide(x.dtype))
        if self.bias is not None:
            logits = logits + self.bias.astype(logits.dtype)
        if self.softcap is not None:
            logits = self.softcap * jnp.tanh(logits / self.softcap)
        return logits.reshape(*x.shape[:-1], self.kernel.shape[1])


class Head(Config):
    """Open base of heads."""

    def make(self, build: Build, vocab_size: int) -> nn.Module:
        """A linen module with `__call__(table) -> Unembedding`, given the embeddings `[V, D]`."""
        raise NotImplementedError(f"{type(self).__name__} must define make(build, vocab_size)")


@dataclass(frozen=True)
class LanguageModel(Head):
    """Logits of the next token.

    Attributes:
        tied: whether the kernel is the embedding's (Press and Wolf, arXiv:1608.05859).
        bias: whether logits have one.
        softcap: cap * tanh(logits / cap) (Gemma 2).
    """

    tied: bool = True
    _: KW_ONLY
    bias: bool = False
    softcap: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "softcap")

    def make(self, build: Build, vocab_size: int) -> nn.Module:
        return LanguageModelModule(self, build, vocab_size)


class LanguageModelModule(nn.Module):
    config: LanguageModel
    build: Build
    vocab_size: int

    @nn.compact
    def __call__(self, table: jax.Array) -> Unembedding:
        c, build = self.config, self.build
        dtype = jnp.dtype(build.precision.params)
        if c.tied:
            kernel = table.T
        else:
            init = build.initialization.kernel("head", build.d_model, self.vocab_size, build.depth)
            kernel = self.param("kernel", init, (build.d_model, self.vocab_size), dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.vocab_size,), dtype) if c.bias else None
        return Unembedding(kernel, bias, c.softcap)
