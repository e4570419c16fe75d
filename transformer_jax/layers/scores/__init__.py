"""Scores as configs: what becomes of q.k before the softmax."""

from transformer_jax.layers.scores.alibi import Alibi
from transformer_jax.layers.scores.base import LearnedScore, Parameter, Score
from transformer_jax.layers.scores.relative_bias import RelativeBias
from transformer_jax.layers.scores.softcap import Softcap

__all__ = ["Alibi", "LearnedScore", "Parameter", "RelativeBias", "Score", "Softcap"]
