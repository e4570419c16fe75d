"""Sines and cosines of the position."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import flax.linen as nn

from transformer_jax.layers.base import Build, check_positive
from transformer_jax.layers.positions.base import Position
from transformer_jax.ops.positions import sinusoid
from transformer_jax.precision import wide
from transformer_jax.typing import Hidden, Positions


@dataclass(frozen=True)
class Sinusoidal(Position):
    """x + sines and cosines of the position, interleaved (arXiv:1706.03762, section 3.5)."""

    base: float = 1e4
    acts_on: ClassVar[Literal["embeddings", "heads", "either"]] = "embeddings"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "base")

    def make(self, build: Build) -> nn.Module:
        if build.d_model % 2:
            raise ValueError(f"Sinusoidal: expected an even d_model, received {build.d_model}")
        return SinusoidalModule(self)


class SinusoidalModule(nn.Module):
    config: Sinusoidal

    def __call__(self, x: Hidden, positions: Positions) -> Hidden:
        return x + sinusoid(positions, x.shape[-1], base=self.config.base, dtype=wide(x.dtype)).astype(x.dtype)
