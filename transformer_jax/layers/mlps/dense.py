"""The MLP of two layers."""

from dataclasses import KW_ONLY, dataclass

import flax.linen as nn

from transformer_jax.layers.base import Build, Context, Linear, Mlp, MlpModule, check_activation, check_positive, check_rate
from transformer_jax.ops.activations import ACTIVATIONS
from transformer_jax.typing import Hidden


@dataclass(frozen=True)
class Dense(Mlp):
    """down(activation(up x)) (arXiv:1706.03762, section 3.3).

    Attributes:
        d_ff: hidden features.
        activation: "relu", "gelu" (exact), "gelu_tanh", "silu", "squared_relu" or "tanh".
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

    def make(self, build: Build) -> nn.Module:
        return DenseModule(self, build)


class DenseModule(MlpModule):
    @nn.compact
    def __call__(self, x: Hidden, context: Context) -> Hidden:
        c, d = self.config, self.build.d_model
        h = Linear((d,), (c.d_ff,), "up", self.build, c.bias, name="up")(x)
        h = nn.Dropout(c.dropout)(ACTIVATIONS[c.activation](h), deterministic=not self.build.training)
        return Linear((c.d_ff,), (d,), "down", self.build, c.bias, name="down")(h)
