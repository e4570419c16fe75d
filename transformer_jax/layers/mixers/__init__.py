"""Mixers: what moves information between positions."""

from transformer_jax.layers.mixers.attention import Attention

__all__ = ["Attention"]
