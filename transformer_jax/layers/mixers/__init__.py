"""Mixers: what moves information between positions."""

from transformer_jax.layers.mixers.attention import Attention
from transformer_jax.layers.mixers.cross_attention import CrossAttention

__all__ = ["Attention", "CrossAttention"]
