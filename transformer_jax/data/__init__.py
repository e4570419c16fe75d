"""Training data: configs that say what to train on, and iterators of shuffled batches."""

from transformer_jax.data.base import Data, Prepared, batches
from transformer_jax.data.dates import Dates
from transformer_jax.data.labelled import Labelled, TokenLabelled
from transformer_jax.data.pairs import Pairs
from transformer_jax.data.python_library import PythonPackages, PythonSource, PythonTokens
from transformer_jax.data.text import Text

__all__ = [
    "Data", "Dates", "Labelled", "Pairs", "Prepared", "PythonPackages", "PythonSource", "PythonTokens", "Text", "TokenLabelled", "batches",
]  # fmt: skip
