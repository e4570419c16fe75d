"""From hidden states to the logits of classes: of a sequence, or of each token."""

from dataclasses import KW_ONLY, dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.config import Config
from transformer_jax.layers.base import Build, Linear, check_activation, check_positive, check_rate
from transformer_jax.layers.head import Head, Unembedding
from transformer_jax.ops.activations import ACTIVATIONS
from transformer_jax.precision import wide
from transformer_jax.typing import Hidden, Valid


class Pool(Config):
    """Open base of ways to make one vector of a sequence."""

    def __call__(self, x: Hidden, valid: Valid) -> jax.Array:
        """`[B, T, D]`, and `[B, T]`, False at padding, to `[B, D]`."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(x, valid)")


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
class SequenceClassifier(Head):
    """Logits of a sequence's class: drop(activation(dense drop(pool(x)))).kernel + bias (arXiv:1810.04805, section 3.2, figure 4 b).

    Attributes:
        num_labels: classes; None where the data decides.
        pool: what makes one vector of the sequence.
        activation: after a dense layer; None for neither (then the pooled vector is what the logits are made from).
        dropout: rate.
    """

    num_labels: int | None = None
    _: KW_ONLY
    pool: Pool = FirstToken()
    activation: str | None = "tanh"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "num_labels")
        check_rate(self, "dropout")
        if self.activation is not None:
            check_activation(self, self.activation)

    def make(self, build: Build, vocab_size: int) -> nn.Module:
        return SequenceClassifierModule(self, build)


class SequenceClassifierModule(nn.Module):
    config: SequenceClassifier
    build: Build

    @nn.compact
    def __call__(self, x: Hidden, table: jax.Array, valid: Valid | None) -> tuple[jax.Array, Unembedding]:
        c, build, d = self.config, self.build, self.build.d_model
        drop = nn.Dropout(c.dropout, deterministic=not build.training)
        x = drop(c.pool(x, jnp.ones(x.shape[:2], bool) if valid is None else valid))
        if c.activation is not None:
            x = drop(ACTIVATIONS[c.activation](Linear((d,), (d,), "pooler", build, bias=True, name="dense")(x)))
        return x, _logits(self, build, c.num_labels)


@dataclass(frozen=True)
class TokenClassifier(Head):
    """Logits of each token's class: drop(x).kernel + bias (arXiv:1810.04805, section 5.3).

    Attributes:
        num_labels: classes; None where the data decides.
        dropout: rate.
    """

    num_labels: int | None = None
    _: KW_ONLY
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "num_labels")
        check_rate(self, "dropout")

    def make(self, build: Build, vocab_size: int) -> nn.Module:
        return TokenClassifierModule(self, build)


class TokenClassifierModule(nn.Module):
    config: TokenClassifier
    build: Build

    @nn.compact
    def __call__(self, x: Hidden, table: jax.Array, valid: Valid | None) -> tuple[Hidden, Unembedding]:
        x = nn.Dropout(self.config.dropout, deterministic=not self.build.training)(x)
        return x, _logits(self, self.build, self.config.num_labels)


def _logits(module: nn.Module, build: Build, num_labels: int | None) -> Unembedding:
    if num_labels is None:
        name = type(module.config).__name__
        raise ValueError(f"{name}.num_labels: expected a number, received None; fill it in, or train on data that has labels")
    dtype = jnp.dtype(build.precision.params)
    init = build.initialization.kernel("head", build.d_model, num_labels, build.depth)
    kernel = module.param("kernel", init, (build.d_model, num_labels), dtype)
    return Unembedding(kernel, module.param("bias", nn.initializers.zeros, (num_labels,), dtype))
