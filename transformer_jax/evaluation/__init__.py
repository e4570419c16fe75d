"""What a trained model is worth, and where its attention looks."""

from transformer_jax.evaluation.attention_maps import attention_probabilities
from transformer_jax.evaluation.classes import confusion, scores_of
from transformer_jax.evaluation.objectives import Evaluation, Findings, Trained, evaluate, exact_matches, load_trained
from transformer_jax.evaluation.text import sliding_loss

__all__ = [
    "Evaluation", "Findings", "Trained", "attention_probabilities", "confusion", "evaluate", "exact_matches", "load_trained", "scores_of", "sliding_loss",
]  # fmt: skip
