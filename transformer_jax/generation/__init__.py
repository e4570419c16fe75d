"""Generating text, all at once in one compiled program or token by token."""

from transformer_jax.generation.decode import generate, stream
from transformer_jax.generation.sampling import Sampling

__all__ = ["Sampling", "generate", "stream"]
