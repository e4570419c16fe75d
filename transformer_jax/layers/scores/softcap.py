"""The tanh cap."""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn

from pallas_kernels import scores
from transformer_jax.layers.base import Build, check_positive
from transformer_jax.layers.scores.base import FixedScoreModule, Score


@dataclass(frozen=True)
class Softcap(Score):
    """cap * tanh(s / cap) (Gemma 2, arXiv:2408.00118, section 2)."""

    cap: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "cap")

    def make(self, build: Build, num_heads: int) -> nn.Module:
        return FixedScoreModule(partial(scores.softcap, self.cap))
