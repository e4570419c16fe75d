"""A learned vector for each position."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp

from transformer_jax.layers.base import Build
from transformer_jax.layers.positions.base import Position
from transformer_jax.typing import Hidden, Positions


@dataclass(frozen=True)
class Learned(Position):
    """x + table[position], with a table `[max_length, D]` (Gehring et al., arXiv:1705.03122, section 3.1). A position beyond it gives NaN."""

    acts_on: ClassVar[Literal["embeddings", "heads", "either"]] = "embeddings"

    def make(self, build: Build) -> nn.Module:
        return LearnedModule(self, build)


class LearnedModule(nn.Module):
    config: Learned
    build: Build

    @nn.compact
    def __call__(self, x: Hidden, positions: Positions) -> Hidden:
        length, width = self.build.max_length, self.build.d_model
        init = self.build.initialization.kernel("position", length, width, self.build.depth)
        table = self.param("embedding", init, (length, width), jnp.dtype(self.build.precision.params))
        positions = jnp.where(positions < 0, length, positions)  # a negative index would count from the end
        return x + jnp.take(table, positions, axis=0, mode="fill").astype(x.dtype)
