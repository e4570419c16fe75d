"""MLPs: what works on each position alone."""

from transformer_jax.layers.mlps.base import FeedForward
from transformer_jax.layers.mlps.dense import Dense
from transformer_jax.layers.mlps.experts import Experts
from transformer_jax.layers.mlps.gated import Gated
from transformer_jax.layers.mlps.no_mlp import NoMlp
from transformer_jax.layers.mlps.routers import Router, Routing, SigmoidRouter, SoftmaxRouter

__all__ = ["Dense", "Experts", "FeedForward", "Gated", "NoMlp", "Router", "Routing", "SigmoidRouter", "SoftmaxRouter"]
