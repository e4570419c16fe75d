"""The parts of a model: configs, each of which makes its linen module with `make(Build(d_model=...))`."""

from transformer_jax.layers.base import Build, Context, Layer, Linear, Mixer, MixerModule, Mlp, MlpModule
from transformer_jax.layers.classifiers import SequenceClassifier, TokenClassifier
from transformer_jax.layers.embedding import Embedding
from transformer_jax.layers.head import Head, LanguageModel, MaskedLanguageModel, Unembedding
from transformer_jax.layers.initialization import GPT2Init, Initialization, NormalInit, T5Init, XavierInit
from transformer_jax.layers.masks import And, Causal, Mask, NoMask, Not, Or, SlidingWindow
from transformer_jax.layers.mixers import Attention, CrossAttention, LatentAttention, ShawAttention
from transformer_jax.layers.mlps import Dense, Experts, FeedForward, Gated, NoMlp, Router, Routing, SigmoidRouter, SoftmaxRouter
from transformer_jax.layers.norm import LayerNorm, NoNorm, Norm, RMSNorm
from transformer_jax.layers.pooling import FirstToken, LastToken, Mean, NoHead, Pool, SentenceEmbedding
from transformer_jax.layers.positions import (
    Learned,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    NoPosition,
    NoScaling,
    NtkScaling,
    Position,
    Rope,
    RopeScaling,
    Sinusoidal,
    YarnScaling,
)
from transformer_jax.layers.residual import Branch, Parallel, Residual
from transformer_jax.layers.scores import Alibi, LearnedScore, Parameter, RelativeBias, Score, Softcap
from transformer_jax.layers.stack import Group, Stack

__all__ = [
    "Alibi", "And", "Attention", "Branch", "Build", "Causal", "Context", "CrossAttention", "Dense", "Embedding", "Experts", "FeedForward", "FirstToken",
    "GPT2Init", "Gated", "Group", "Head", "Initialization", "LanguageModel", "LastToken", "LatentAttention", "Layer", "LayerNorm", "Learned", "LearnedScore",
    "Linear", "LinearScaling", "Llama3Scaling", "LongRopeScaling", "Mask", "MaskedLanguageModel", "Mean", "Mixer", "MixerModule", "Mlp", "MlpModule", "NoHead",
    "NoMask", "NoMlp", "NoNorm", "NoPosition", "NoScaling", "Norm", "NormalInit", "Not", "NtkScaling", "Or", "Parallel", "Parameter", "Pool", "Position",
    "RMSNorm", "RelativeBias", "Residual", "Rope", "RopeScaling", "Router", "Routing", "Score", "SentenceEmbedding", "SequenceClassifier", "ShawAttention",
    "SigmoidRouter", "Sinusoidal", "SlidingWindow", "Softcap", "SoftmaxRouter", "Stack", "T5Init", "TokenClassifier", "Unembedding", "XavierInit",
    "YarnScaling",
]  # fmt: skip
