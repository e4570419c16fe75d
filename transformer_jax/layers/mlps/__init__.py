"""MLPs: what works on each position alone."""

from transformer_jax.layers.mlps.dense import Dense
from transformer_jax.layers.mlps.gated import Gated

__all__ = ["Dense", "Gated"]
