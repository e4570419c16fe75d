"""Training data: configs that say what to train on, and iterators of shuffled batches."""

from transformer_jax.data.text import Data, Prepared, Text, batches

__all__ = ["Data", "Prepared", "Text", "batches"]
