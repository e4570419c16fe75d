"""A learned vector for each position."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp

from transformer_jax.layers.base import Build, check_not_negative
from transformer_jax.layers.positions.base import Position
from transformer_jax.typing import Hidden, Positions


@dataclass(frozen=True)
class Learned(Position):
    """x + table[position + offset] (Gehring et al., arXiv:1705.03122, section 3.1), with a table `[max_length + offset, D]`. A position beyond it gives NaN.

    Attributes:
        offset: rows before that of position 0, which are never read (BART has 2, RoBERTa the number of its padding token and one more).
    """

    _: KW_ONLY
    offset: int = 0
    acts_on: ClassVar[Literal["embeddings", "heads", "either"]] = "embeddings"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "offset")

    def make(self, build: Build) -> nn.Module:
        return LearnedModule(self, build)


class LearnedModule(nn.Module):
    config: Learned
    build: Build

    @nn.compact
    def __call__(self, x: Hidden, positions: Positions) -> Hidden:
        offset, width = self.config.offset, self.build.d_model
        rows = self.build.max_length + offset
        init = self.build.initialization.kernel("position", rows, width, self.build.depth)
        table = self.param("embedding", init, (rows, width), jnp.dtype(self.build.precision.params))
        row = jnp.where(positions < 0, rows, positions + offset)  # a negative index would count from the end
        return x + jnp.take(table, row, axis=0, mode="fill").astype(x.dtype)
