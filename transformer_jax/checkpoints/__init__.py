"""Checkpoints of published models: from their folders, and into them."""

from transformer_jax.checkpoints.pretrained import from_pretrained, is_published, published_config, read_about, save_pretrained
from transformer_jax.checkpoints.vocabulary import published_vocabulary
from transformer_jax.checkpoints.writing import Writing, writing

__all__ = ["Writing", "from_pretrained", "is_published", "published_config", "published_vocabulary", "read_about", "save_pretrained", "writing"]
