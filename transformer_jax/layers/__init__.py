"""The parts of a model: configs, each of which makes its linen module with `make(Build(d_model=...))`."""

from transformer_jax.layers.base import Build, Context, Layer, Linear, Mixer, MixerModule, Mlp, MlpModule
from transformer_jax.layers.embedding import Embedding
from transformer_jax.layers.head import Head, LanguageModel, Unembedding
from transformer_jax.layers.initialization import GPT2Init, Initialization, NormalInit, T5Init, XavierInit
from transformer_jax.layers.masks import And, Causal, Mask, NoMask, Not, Or, SlidingWindow
from transformer_jax.layers.mixers import Attention
from transformer_jax.layers.mlps import Dense, Gated
from transformer_jax.layers.norm import LayerNorm, NoNorm, Norm, RMSNorm
from transformer_jax.layers.positions import Learned, NoPosition, Position, Rope, Sinusoidal
from transformer_jax.layers.residual import Branch, Parallel, Residual
from transformer_jax.layers.scores import Alibi, LearnedScore, Parameter, RelativeBias, Score, Softcap
from transformer_jax.layers.stack import Group, Stack

__all__ = [
    "Alibi", "And", "Attention", "Branch", "Build", "Causal", "Context", "Dense", "Embedding", "GPT2Init", "Gated", "Group", "Head", "Initialization",
    "LanguageModel", "Layer", "LayerNorm", "Learned", "LearnedScore", "Linear", "Mask", "Mixer", "MixerModule", "Mlp", "MlpModule", "NoMask", "NoNorm",
    "NoPosition", "Norm", "NormalInit", "Not", "Or", "Parallel", "Parameter", "Position", "RMSNorm", "RelativeBias", "Residual", "Rope", "Score", "Sinusoidal",
    "SlidingWindow", "Softcap", "Stack", "T5Init", "Unembedding", "XavierInit",
]  # fmt: skip
