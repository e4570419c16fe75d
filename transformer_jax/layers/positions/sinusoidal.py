"""Sines and cosines of the position."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import flax.linen as nn

from transformer_jax.layers.base import Build, check_positive
from transformer_jax.layers.positions.base import Position
from transformer_jax.ops.positions import sinusoid
from transformer_jax.precision import wide
from transformer_jax.typing import Hidden, Positions


@dataclass(frozen=True)
class Sinusoidal(Position):
    """x + sines and cosines of position / base^(2i / D), i < D / 2 (arXiv:1706.03762, section 3.5).

    Attributes:
        base: the longest wavelength is nearly 2 pi times this.
        interleaved: whether a sine and its cosine lie side by side; otherwise all sines come first (Marian, released code).
    """

    base: float = 1e4
    _: KW_ONLY
    interleaved: bool = True
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
        c = self.config
        return x + sinusoid(positions, x.shape[-1], base=c.base, interleaved=c.interleaved, dtype=wide(x.dtype)).astype(x.dtype)
