"""MLPs that are made of linear layers: written once, used alone and as experts."""

from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax

from transformer_jax.layers.base import Build, Context, Linear, Mlp, MlpModule
from transformer_jax.typing import Hidden


class MakesLinear(Protocol):
    """`linear(name, x, outputs)`: x.kernel (+ bias) by the layer of that name, `[..., K]` to `[..., outputs]`. One called "down" writes to the stream."""

    def __call__(self, name: str, x: jax.Array, outputs: int) -> jax.Array: ...


class FeedForward(Mlp):
    """Open base of MLPs made of linear layers, which `Experts` can make many of:

        @dataclass(frozen=True)
        class Bilinear(FeedForward):
            d_ff: int

            def compute(self, x, linear, drop):
                h = linear("left", x, self.d_ff) * linear("right", x, self.d_ff)
                return linear("down", drop(h), x.shape[-1])

    A subclass may have fields `bias`, whether its layers have biases, and `dropout`, the rate of `drop`.
    """

    bias: bool = False
    dropout: float = 0.0

    def compute(self, x: jax.Array, linear: MakesLinear, drop: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """The MLP of rows x `[..., D]`, which it must treat alike and each alone."""
        raise NotImplementedError(f"{type(self).__name__} must define compute(x, linear, drop)")

    def make(self, build: Build) -> nn.Module:
        return FeedForwardModule(self, build)


def role_of(name: str) -> str:
    """What the linear layer of an MLP does, for its initialisation."""
    return "down" if name == "down" else "up"


class FeedForwardModule(MlpModule):
    @nn.compact
    def __call__(self, x: Hidden, context: Context) -> Hidden:
        c, build = self.config, self.build

        def linear(name: str, x: jax.Array, outputs: int) -> Any:
            return Linear((x.shape[-1],), (outputs,), role_of(name), build, c.bias, name=name)(x)

        y: Hidden = c.compute(x, linear, nn.Dropout(c.dropout, deterministic=not build.training))
        return y
