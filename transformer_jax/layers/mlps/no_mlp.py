"""The MLP that there is not."""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from transformer_jax.layers.base import Build, Context, Mlp, MlpModule
from transformer_jax.typing import Hidden


@dataclass(frozen=True)
class NoMlp(Mlp):
    """y = 0."""

    def make(self, build: Build) -> nn.Module:
        return NoMlpModule(self, build)


class NoMlpModule(MlpModule):
    def __call__(self, x: Hidden, context: Context) -> Hidden:
        return jnp.zeros_like(x)
