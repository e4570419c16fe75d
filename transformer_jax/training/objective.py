"""What is minimised, as a function of a model, its variables and a batch."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, cast

import flax.linen as nn
import jax

from pallas_kernels.loss import CrossEntropy, linear_cross_entropy
from transformer_jax.config import Config
from transformer_jax.layers.base import check_not_negative, check_rate
from transformer_jax.typing import Array

Batch = dict[str, Array]


class Objective(Config):
    """Open base of objectives."""

    def __call__(self, model: nn.Module, variables: Any, batch: Batch, rngs: dict[str, Array] | None = None) -> CrossEntropy:
        """Sums over a batch; the loss is total / weight."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(model, variables, batch, rngs)")


@dataclass(frozen=True)
class NextToken(Objective):
    """Cross-entropy of each token given those before it.

    A batch holds "tokens" `[B, T + 1]`, negative where nothing is to be predicted, and may hold "segment_ids" and "positions" of the same shape.

    Attributes:
        label_smoothing: in [0, 1).
        z_loss: weight of the squared log of the softmax's sum.
    """

    label_smoothing: float = 0.0
    _: KW_ONLY
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rate(self, "label_smoothing")
        check_not_negative(self, "z_loss")

    def __call__(self, model: nn.Module, variables: Any, batch: Batch, rngs: dict[str, Array] | None = None) -> CrossEntropy:
        tokens = batch["tokens"]
        given = {name: batch[name][:, :-1] for name in ("segment_ids", "positions") if name in batch}
        labels = tokens[:, 1:]
        if "segment_ids" in batch:  # the first token of a segment is not predicted from the last of another
            labels = jax.numpy.where(batch["segment_ids"][:, 1:] == batch["segment_ids"][:, :-1], labels, -1)

        def features(module: Any) -> Any:
            return module.features(jax.numpy.maximum(tokens[:, :-1], 0), **given), module.unembedding()

        x, head = cast(Any, model.apply(variables, rngs=rngs, method=features))
        return linear_cross_entropy(
            x.reshape(-1, x.shape[-1]),
            head.kernel,
            labels.reshape(-1),
            bias=head.bias,
            softcap=head.softcap,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
        )
