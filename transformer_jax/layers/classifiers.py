"""From hidden states to the logits of classes, of a sequence or of each token."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.layers.base import Build, Linear, check_activation, check_positive, check_rate
from transformer_jax.layers.head import Head, Unembedding
from transformer_jax.layers.norm import NoNorm, Norm
from transformer_jax.layers.pooling import FirstToken, Pool
from transformer_jax.ops.activations import ACTIVATIONS
from transformer_jax.typing import Hidden, Valid


@dataclass(frozen=True)
class Classifier(Head):
    """Base of heads for classes: logits h.kernel + bias, where h is drop(x), or with an activation drop(norm(activation(dense drop(x)))).

    Attributes:
        num_labels: classes; None where the data decides.
        activation: after a dense layer; None for neither.
        norm: after the activation (ModernBERT, arXiv:2412.13663, released code).
        bias: whether the dense layer has one.
        dropout: rate.
        logits_bias: whether the logits have one.
    """

    num_labels: int | None = None
    _: KW_ONLY
    activation: str | None = None
    norm: Norm = NoNorm()
    bias: bool = True
    dropout: float = 0.0
    logits_bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "num_labels")
        check_rate(self, "dropout")
        if self.activation is not None:
            check_activation(self, self.activation)
        elif self.norm != NoNorm() or not self.bias:
            name, expected, given = ("norm", "NoNorm()", self.norm) if self.bias else ("bias", "True", self.bias)
            raise ValueError(f"{type(self).__name__}.{name}: expected {expected} without an activation, for then there is no dense layer, received {given!r}")


class ClassifierModule(nn.Module):
    """Base of the modules."""

    config: Any
    build: Build

    def setup(self) -> None:
        c, build, d = self.config, self.build, self.build.d_model
        if c.num_labels is None:
            name = type(c).__name__
            raise ValueError(f"{name}.num_labels: expected a number, received None; fill it in, or train on data that has labels")
        dtype = jnp.dtype(build.precision.params)
        self.kernel = self.param("kernel", build.initialization.kernel("head", d, c.num_labels, build.depth), (d, c.num_labels), dtype)
        self.bias = self.param("bias", nn.initializers.zeros, (c.num_labels,), dtype) if c.logits_bias else None
        self.drop = nn.Dropout(c.dropout, deterministic=not build.training)
        if c.activation is not None:
            self.dense, self.norm = Linear((d,), (d,), "pooler", build, c.bias), c.norm.make(build)

    def _classify(self, x: jax.Array) -> tuple[jax.Array, Unembedding]:
        """Of `[..., D]`, what the last product takes, and the product."""
        x = self.drop(x)
        if self.config.activation is not None:
            x = self.drop(self.norm(ACTIVATIONS[self.config.activation](self.dense(x))))
        return x, Unembedding(self.kernel, self.bias)


@dataclass(frozen=True)
class SequenceClassifier(Classifier):
    """Logits of a sequence's class: `Classifier`'s of x = pool(hidden) (arXiv:1810.04805, section 3.2, figure 4 b). Further fields: `Classifier`'s.

    Attributes:
        activation: None where the pooled vector is what the logits are made from (GPT, Llama; `logits_bias=False` there).
        pool: what makes one vector of the sequence.
    """

    _: KW_ONLY
    activation: str | None = "tanh"
    pool: Pool = FirstToken()

    def make(self, build: Build, vocab_size: int) -> nn.Module:
        return SequenceClassifierModule(self, build)


class SequenceClassifierModule(ClassifierModule):
    def __call__(self, x: Hidden, table: jax.Array, valid: Valid | None) -> tuple[jax.Array, Unembedding]:
        return self._classify(self.config.pool.of(x, valid))


@dataclass(frozen=True)
class TokenClassifier(Classifier):
    """Logits of each token's class: `Classifier`'s of its hidden state (arXiv:1810.04805, section 5.3). Fields: `Classifier`'s."""

    def make(self, build: Build, vocab_size: int) -> nn.Module:
        return TokenClassifierModule(self, build)


class TokenClassifierModule(ClassifierModule):
    def __call__(self, x: Hidden, table: jax.Array, valid: Valid | None) -> tuple[Hidden, Unembedding]:
        return self._classify(x)
