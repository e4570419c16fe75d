"""Mixers: what moves information between positions."""

from transformer_jax.layers.mixers.attention import Attention
from transformer_jax.layers.mixers.cross_attention import CrossAttention
from transformer_jax.layers.mixers.latent import LatentAttention
from transformer_jax.layers.mixers.shaw import ShawAttention

__all__ = ["Attention", "CrossAttention", "LatentAttention", "ShawAttention"]
