"""Rotary positions."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import flax.linen as nn

from transformer_jax.layers.base import Build, check_positive
from transformer_jax.layers.positions.base import Position
from transformer_jax.layers.positions.scaling import NoScaling, RopeScaling
from transformer_jax.ops.positions import rotate
from transformer_jax.precision import wide
from transformer_jax.typing import Heads, Positions


@dataclass(frozen=True)
class Rope(Position):
    """Pairs of features (i, i + R/2) turn by position * theta^(-2i/R) (Su et al., arXiv:2104.09864).

    Attributes:
        theta: base of the frequencies.
        fraction: share of a head's features that turn, R = fraction * H (GPT-NeoX turns a quarter).
        scaling: for texts longer than those that a model was first trained on.
    """

    theta: float = 1e4
    _: KW_ONLY
    fraction: float = 1.0
    scaling: RopeScaling = NoScaling()
    acts_on: ClassVar[Literal["embeddings", "heads", "either"]] = "heads"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "theta")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"Rope.fraction: expected a share in (0, 1], received {self.fraction}")

    def make(self, build: Build) -> nn.Module:
        return RopeModule(self, build)


class RopeModule(nn.Module):
    config: Rope
    build: Build

    def __call__(self, x: Heads, positions: Positions) -> Heads:
        c, build = self.config, self.build
        turning = int(x.shape[-1] * c.fraction) // 2 * 2
        if not turning:
            raise ValueError(f"Rope.fraction: expected a share of at least 2 of a head's {x.shape[-1]} features, received {c.fraction}")
        return rotate(x, positions, c.scaling.rates(turning, c.theta, build, wide(x.dtype)), c.scaling.amplitude(build))
