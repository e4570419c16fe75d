"""T5's relative position bias."""

from dataclasses import KW_ONLY, dataclass

import flax.linen as nn
import jax

from pallas_kernels import scores
from pallas_kernels.flash.scores import Score as KernelScore
from pallas_kernels.flash.scores import bucket_thresholds
from transformer_jax.layers.scores.base import LearnedScore, Parameter


@dataclass(frozen=True)
class RelativeBias(LearnedScore):
    """s + table[head, bucket(k - q)] (Raffel et al., arXiv:1910.10683, section 2.1).

    Attributes:
        buckets: columns of the table.
        max_distance: all distances beyond share the last bucket.
        bidirectional: whether keys after the query have buckets of their own, as they must in an encoder; otherwise they share that of distance 0.
    """

    buckets: int = 32
    _: KW_ONLY
    max_distance: int = 128
    bidirectional: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        bucket_thresholds(self.buckets, self.bidirectional, self.max_distance)

    def parameters(self, num_heads: int) -> dict[str, Parameter]:
        return {"table": Parameter((num_heads, self.buckets), "N", nn.initializers.normal(0.02))}

    def score(self, **arrays: tuple[jax.Array, str]) -> KernelScore:
        return scores.relative_bias(arrays["table"][0], self.bidirectional, self.max_distance)
