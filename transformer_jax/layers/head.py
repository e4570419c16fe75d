"""From hidden states to logits of tokens."""

import math
from dataclasses import KW_ONLY, dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from transformer_jax.config import Config
from transformer_jax.layers.base import Build, Linear, check_activation, check_positive
from transformer_jax.layers.norm import LayerNorm, Norm
from transformer_jax.ops.activations import ACTIVATIONS
from transformer_jax.precision import wide
from transformer_jax.typing import Hidden, Logits, Valid


class Unembedding(struct.PyTreeNode):
    """What maps hidden states to logits: softcap(x.kernel + bias).

    Attributes:
        kernel: `[D, V]`; V are the classes where it is not tokens.
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
        """A linen module with `__call__(x, table, valid) -> (x, unembedding)`: what the last product takes, `[B, T, D]` or pooled `[B, D]`, and the product,
        None for a head without logits.

        It is given the last hidden state `[B, T, D]`, the embeddings `[V, D]`, and `[B, T]`, False at padding, or None.
        """
        raise NotImplementedError(f"{type(self).__name__} must define make(build, vocab_size)")


@dataclass(frozen=True)
class LanguageModel(Head):
    """Logits of tokens: softcap((scale * x).kernel + bias).

    Attributes:
        tied: whether the kernel is the embedding's (Press and Wolf, arXiv:1608.05859).
        scale: of the hidden state (T5 with a tied kernel: d_model^-0.5).
        bias: whether logits have one.
        softcap: cap * tanh(logits / cap) (Gemma 2).
    """

    tied: bool = True
    _: KW_ONLY
    scale: float = 1.0
    bias: bool = False
    softcap: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "scale", "softcap")

    def make(self, build: Build, vocab_size: int) -> nn.Module:
        return LanguageModelModule(self, build, vocab_size)


class LanguageModelModule(nn.Module):
    config: LanguageModel
    build: Build
    vocab_size: int

    @nn.compact
    def __call__(self, x: Hidden, table: jax.Array, valid: Valid | None) -> tuple[Hidden, Unembedding]:
        c, build = self.config, self.build
        dtype = jnp.dtype(build.precision.params)
        if c.tied:
            kernel = table.T
        else:
            init = build.initialization.kernel("head", build.d_model, self.vocab_size, build.depth)
            kernel = self.param("kernel", init, (build.d_model, self.vocab_size), dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.vocab_size,), dtype) if c.bias else None
        return (x if c.scale == 1 else x * jnp.asarray(c.scale, x.dtype)), Unembedding(kernel, bias, c.softcap)


@dataclass(frozen=True)
class MaskedLanguageModel(Head):
    """Logits of the tokens behind masks: logits(norm(activation(transform x))) (Devlin et al., arXiv:1810.04805, released code).

    Attributes:
        activation: between the transform, a dense layer, and the norm.
        bias: whether the transform has one.
        norm: of what the logits are made from.
        logits: as for a language model.
    """

    activation: str = "gelu"
    _: KW_ONLY
    bias: bool = True
    norm: Norm = LayerNorm()
    logits: LanguageModel = LanguageModel(bias=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_activation(self, self.activation)

    def make(self, build: Build, vocab_size: int) -> nn.Module:
        return MaskedLanguageModelModule(self, build, vocab_size)


class MaskedLanguageModelModule(nn.Module):
    config: MaskedLanguageModel
    build: Build
    vocab_size: int

    def setup(self) -> None:
        c, d = self.config, self.build.d_model
        self.transform, self.norm = Linear((d,), (d,), "up", self.build, c.bias), c.norm.make(self.build)
        self.logits = c.logits.make(self.build, self.vocab_size)

    def __call__(self, x: Hidden, table: jax.Array, valid: Valid | None) -> tuple[Hidden, Unembedding]:
        x = self.norm(ACTIVATIONS[self.config.activation](self.transform(x)))
        out: tuple[Hidden, Unembedding] = self.logits(x, table, valid)
        return out
