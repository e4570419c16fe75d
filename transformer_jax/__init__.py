"""A pure functional transformer zoo in JAX and Flax linen."""

from transformer_jax.generation import generate, stream
from transformer_jax.models import DecoderOnly, EncoderDecoder, EncoderOnly, stacked, unstacked

__all__ = ["DecoderOnly", "EncoderDecoder", "EncoderOnly", "generate", "stacked", "stream", "unstacked"]
