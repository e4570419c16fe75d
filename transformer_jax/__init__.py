"""A pure functional transformer zoo in JAX and Flax linen."""

from transformer_jax import zoo
from transformer_jax.checkpoints import from_pretrained, save_pretrained
from transformer_jax.generation import generate, stream
from transformer_jax.models import DecoderOnly, EncoderDecoder, EncoderOnly, stacked, unstacked

__all__ = ["DecoderOnly", "EncoderDecoder", "EncoderOnly", "from_pretrained", "generate", "save_pretrained", "stacked", "stream", "unstacked", "zoo"]
