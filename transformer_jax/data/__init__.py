"""Training data: configs that say what to train on, and iterators of shuffled batches."""

from transformer_jax.data.base import Data, Prepared, batches
from transformer_jax.data.labelled import Labelled, TokenLabelled
from transformer_jax.data.pairs import Pairs
from transformer_jax.data.text import Text

__all__ = ["Data", "Labelled", "Pairs", "Prepared", "Text", "TokenLabelled", "batches"]
