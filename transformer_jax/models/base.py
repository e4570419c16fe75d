"""The open base of model configs."""

from typing import Any

import flax.linen as nn

from transformer_jax.config import Config


class ModelConfig(Config):
    """Open base of model configs.

    Attributes:
        vocab_size: None where the data decides.
        max_length: the longest sequence.
    """

    vocab_size: int | None
    max_length: int

    def make(self, **fields: Any) -> nn.Module:
        """The model; `fields` are those of its module after the first, such as `training` and `precision`."""
        raise NotImplementedError(f"{type(self).__name__} must define make(**fields)")
