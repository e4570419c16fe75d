"""ALiBi."""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import numpy as np

from pallas_kernels import scores
from transformer_jax.layers.base import Build
from transformer_jax.layers.scores.base import FixedScoreModule, Score


@dataclass(frozen=True)
class Alibi(Score):
    """s - slope * abs(q - k), with the published slope of each head (arXiv:2108.12409, section 3)."""

    def make(self, build: Build, num_heads: int) -> nn.Module:
        return FixedScoreModule(partial(scores.alibi, alibi_slopes(num_heads)))


def alibi_slopes(num_heads: int) -> np.ndarray:
    """2^(-8/n), 2^(-16/n), ... for n heads, a power of two; otherwise those of the power below, then every second one of the power above."""

    def powers(n: int) -> np.ndarray:
        return 2.0 ** (-8 * np.arange(1, n + 1) / n)

    below = 2 ** int(np.log2(num_heads))
    extra = powers(2 * below)[::2][: num_heads - below]
    return np.concatenate([powers(below), extra]).astype(np.float32)
