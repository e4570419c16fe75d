"""Which numbers parameters are kept in and computed with."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import jax.numpy as jnp

from transformer_jax.config import Config

Dtype = Literal["float32", "bfloat16", "float16", "float64"]


@dataclass(frozen=True)
class Precision(Config):
    """Dtypes of parameters and of compute.

    Whatever they are, norm statistics, softmax and lse, rope angles, router logits, logits and loss are float32 (float64 where compute is).
    """

    params: Dtype = "float32"
    _: KW_ONLY
    compute: Dtype = "float32"

    @property
    def exact(self) -> Any:
        """The dtype of what must not be rounded: float32, or float64."""
        return wide(jnp.dtype(self.compute))


def wide(dtype: Any) -> Any:
    """float64 for float64, float32 for every other float."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32
