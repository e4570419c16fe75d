"""A pure functional transformer zoo in JAX and Flax linen."""

from transformer_jax.generation import generate, stream
from transformer_jax.models import DecoderOnly, stacked, unstacked

__all__ = ["DecoderOnly", "generate", "stacked", "stream", "unstacked"]
