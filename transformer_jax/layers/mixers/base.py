"""What all layers of attention share: scores and sinks, and the call of attention with them."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from pallas_kernels import attention
from pallas_kernels.flash.backends.reference import probabilities
from pallas_kernels.flash.masks import Mask as KernelMask
from pallas_kernels.flash.request import make_request
from pallas_kernels.flash.scores import Score as KernelScore
from transformer_jax.layers.base import Layer, MixerModule, attention_dropout, check_positive, check_rate
from transformer_jax.layers.scores.base import Score
from transformer_jax.typing import Heads


@dataclass(frozen=True)
class Attending(Layer):
    """Base of layers of attention.

    Attributes:
        num_heads: of queries.
        score: applied in order, after the stack's where there are any.
        qkv_bias, out_bias: whether the projections from the layer's input, and back to the residual stream, have biases.
        scale: of q.k; (features of a query)^-0.5 unless given.
        sinks: whether each query head has a learned logit in its softmax's sum, without a value (gpt-oss, arXiv:2508.10925, section 2). It starts at 0.
        dropout: rate, of the probabilities.
    """

    num_heads: int
    _: KW_ONLY
    score: tuple[Score, ...] = ()
    qkv_bias: bool = False
    out_bias: bool = False
    scale: float | None = None
    sinks: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "num_heads")
        check_rate(self, "dropout")


class AttendingModule(MixerModule):
    """Base of the modules."""

    def setup(self) -> None:
        c, build = self.config, self.build
        self.scores = [score.make(build, c.num_heads) for score in c.score]
        self.sinks = self.param("sinks", nn.initializers.zeros, (c.num_heads,), jnp.dtype(build.precision.params)) if c.sinks else None

    def _attend(
        self, q: Heads, k: Heads, v: Heads, mask: KernelMask | None, score: tuple[KernelScore, ...], q_positions: Any, kv_positions: Any, scale: float | None
    ) -> Heads:  # fmt: skip
        build = self.build
        how = {
            "mask": mask,
            "score": self._scores(q, score),
            "scale": scale,
            "sinks": self.sinks,
            "dropout": attention_dropout(self, self.config.dropout, build.training),
            "q_positions": q_positions,
            "kv_positions": kv_positions,
        }
        if build.backend == "reference" and self.is_mutable_collection("intermediates") and not self.is_initializing():
            self.sow("intermediates", "probabilities", probabilities(make_request(q, k, v, **how))[0])
        return self._outputs(q, k, v, {**how, "backend": build.backend})

    def _scores(self, q: Heads, shared: tuple[KernelScore, ...]) -> tuple[KernelScore, ...]:
        return (*shared, *(score() for score in self.scores))

    def _outputs(self, q: Heads, k: Heads, v: Heads, how: dict[str, Any]) -> Heads:
        return attention(q, k, v, **how)
