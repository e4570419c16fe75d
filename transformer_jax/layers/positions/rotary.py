"""Rotary positions."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import flax.linen as nn

from transformer_jax.layers.base import Build, check_positive
from transformer_jax.layers.positions.base import Position
from transformer_jax.ops.positions import frequencies, rotate
from transformer_jax.precision import wide
from transformer_jax.typing import Heads, Positions


@dataclass(frozen=True)
class Rope(Position):
    """Pairs of features (i, i + R/2) turn by position * theta^(-2i/R) (Su et al., arXiv:2104.09864).

    Attributes:
        theta: base of the frequencies.
        fraction: share of a head's features that turn, R = fraction * H (GPT-NeoX turns a quarter).
    """

    theta: float = 1e4
    _: KW_ONLY
    fraction: float = 1.0
    acts_on: ClassVar[Literal["embeddings", "heads", "either"]] = "heads"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "theta")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"Rope.fraction: expected a share in (0, 1], received {self.fraction}")

    def make(self, build: Build) -> nn.Module:
        return RopeModule(self)


class RopeModule(nn.Module):
    config: Rope

    def __call__(self, x: Heads, positions: Positions) -> Heads:
        turning = int(x.shape[-1] * self.config.fraction) // 2 * 2
        if not turning:
            raise ValueError(f"Rope.fraction: expected a share of at least 2 of a head's {x.shape[-1]} features, received {self.config.fraction}")
        return rotate(x, positions, frequencies(turning, self.config.theta, wide(x.dtype)))
