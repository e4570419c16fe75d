"""The gated MLP."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import jax
import jax.numpy as jnp

from transformer_jax.layers.base import check_activation, check_positive, check_rate
from transformer_jax.layers.mlps.base import FeedForward, MakesLinear
from transformer_jax.ops.activations import ACTIVATIONS


@dataclass(frozen=True)
class Gated(FeedForward):
    """down(activation(gate x) * (up x + up_offset)): SwiGLU with "silu", GeGLU with "gelu" (Shazeer, arXiv:2002.05202).

    gpt-oss's (arXiv:2508.10925, section 2.1, and released code) is `Gated(d_ff, activation="quick_gelu", bias=True, limit=7.0, up_offset=1.0)`.

    Attributes:
        d_ff: hidden features.
        activation: of the gate; "relu", "gelu" (exact), "gelu_tanh", "quick_gelu", "silu", "squared_relu" or "tanh".
        bias: whether the three layers have biases.
        dropout: rate, of the hidden features.
        limit: gate x is cut to at most this before its activation, and up x to within it on both sides; None for no limit.
        up_offset: added to up x.
    """

    d_ff: int
    _: KW_ONLY
    activation: str = "silu"
    bias: bool = False
    dropout: float = 0.0
    limit: float | None = None
    up_offset: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "d_ff", "limit")
        check_rate(self, "dropout")
        check_activation(self, self.activation)

    def compute(self, x: jax.Array, linear: MakesLinear, drop: Callable[[jax.Array], jax.Array]) -> jax.Array:
        gate, up = linear("gate", x, self.d_ff), linear("up", x, self.d_ff)
        if self.limit is not None:
            gate, up = jnp.minimum(gate, self.limit), jnp.clip(up, -self.limit, self.limit)
        if self.up_offset:
            up = up + self.up_offset
        return linear("down", drop(ACTIVATIONS[self.activation](gate) * up), x.shape[-1])
