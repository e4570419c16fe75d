"""Encoder-only models."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from transformer_jax.layers.base import Linear
from transformer_jax.layers.head import Head, MaskedLanguageModel, Unembedding
from transformer_jax.layers.pooling import FirstToken
from transformer_jax.models.base import ModelConfig
from transformer_jax.models.one_stack import OneStack, OneStackConfig
from transformer_jax.typing import Hidden, Tokens


@dataclass(frozen=True)
class EncoderOnlyConfig(OneStackConfig):
    """An encoder-only model: a stack whose attention looks both ways (`mask=NoMask()`). Fields: `OneStackConfig`'s.

    Attributes:
        head: `MaskedLanguageModel()`, `SequenceClassifier()`, `TokenClassifier()`, `SentenceEmbedding()`, or `NoHead()`.
        pooler: whether there is BERT's vector of a sequence beside what the head makes: tanh(dense x) of the first token's x, which `method="pooled"` gives
            (arXiv:1810.04805, released code).
    """

    head: Head = MaskedLanguageModel()
    pooler: bool = False

    def make(self, **fields: Any) -> "EncoderOnly":
        """The model; `fields` are those of `EncoderOnly` after the first."""
        return EncoderOnly(self, **fields)


class EncoderOnly(OneStack):
    """An encoder-only model. `init(key, tokens)` gives `{"params": ...}`; `apply(variables, tokens)` what its head makes. Fields: `Model`'s."""

    kind: ClassVar[type[ModelConfig]] = EncoderOnlyConfig

    def setup(self) -> None:
        super().setup()
        if self.config.pooler:
            width = self.config.d_model
            self.pooler = Linear((width,), (width,), "pooler", self.build(self.config.stack), bias=True)

    def prelogits(self, tokens: Tokens, **options: Any) -> tuple[Hidden, Unembedding | None]:
        if self.config.pooler and self.is_initializing():
            self.pooler(jnp.zeros((1, self.config.d_model)))  # no head asks for it, and parameters are made on first use
        return super().prelogits(tokens, **options)

    def pooled(self, tokens: Tokens, **options: Any) -> jax.Array:
        """The pooler's vector of each sequence `[B, D]`; arguments as for a call.

        Raises:
            ValueError: there is no pooler.
        """
        if not self.config.pooler:
            way_out = "config.replace(pooler=True), or a folder with a pooler, whose tensors tell"
            raise ValueError(f"EncoderOnlyConfig.pooler: expected True for method='pooled', received False; give {way_out}")
        return jnp.tanh(self.pooler(FirstToken().of(self.features(tokens, **options), options.get("valid"))))
