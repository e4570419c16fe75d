"""Training data: configs that say what to train on, and iterators of shuffled batches."""

from transformer_jax.data.base import Data, Prepared, batches
from transformer_jax.data.pairs import Pairs
from transformer_jax.data.text import Text

__all__ = ["Data", "Pairs", "Prepared", "Text", "batches"]
