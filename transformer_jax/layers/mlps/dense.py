"""The MLP of two layers."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import jax

from transformer_jax.layers.base import check_activation, check_positive, check_rate
from transformer_jax.layers.mlps.base import FeedForward, MakesLinear
from transformer_jax.ops.activations import ACTIVATIONS


@dataclass(frozen=True)
class Dense(FeedForward):
    """down(activation(up x)) (arXiv:1706.03762, section 3.3).

    Attributes:
        d_ff: hidden features.
        activation: "relu", "gelu" (exact), "gelu_tanh", "quick_gelu", "silu", "squared_relu" or "tanh".
        bias: whether both layers have biases.
        dropout: rate, of the hidden features.
    """

    d_ff: int
    _: KW_ONLY
    activation: str = "gelu"
    bias: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "d_ff")
        check_rate(self, "dropout")
        check_activation(self, self.activation)

    def compute(self, x: jax.Array, linear: MakesLinear, drop: Callable[[jax.Array], jax.Array]) -> jax.Array:
        h = ACTIVATIONS[self.activation](linear("up", x, self.d_ff))
        return linear("down", drop(h), x.shape[-1])
