"""Encoder-only models."""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import jax

from transformer_jax.layers.head import Head, MaskedLanguageModel
from transformer_jax.layers.pooling import NoHead
from transformer_jax.models.base import ModelConfig
from transformer_jax.models.one_stack import OneStack, OneStackConfig
from transformer_jax.typing import Tokens


@dataclass(frozen=True)
class EncoderOnlyConfig(OneStackConfig):
    """An encoder-only model: a stack whose attention looks both ways (`mask=NoMask()`). Fields: `OneStackConfig`'s.

    Attributes:
        head: `MaskedLanguageModel()`, `SequenceClassifier()`, `TokenClassifier()`, `SentenceEmbedding()`, or `NoHead()`.
    """

    head: Head = MaskedLanguageModel()

    def make(self, **fields: Any) -> "EncoderOnly":
        """The model; `fields` are those of `EncoderOnly` after the first."""
        return EncoderOnly(self, **fields)


class EncoderOnly(OneStack):
    """An encoder-only model. `init(key, tokens)` gives `{"params": ...}`; `apply(variables, tokens)` what its head makes. Fields: `Model`'s."""

    kind: ClassVar[type[ModelConfig]] = EncoderOnlyConfig

    def pooled(self, tokens: Tokens, **options: Any) -> jax.Array:
        """BERT's vector of the sequence `[B, D]`, for a head with `pooler=True`; arguments as for a call.

        Raises:
            ValueError: the head has no pooler.
        """
        head = self.config.head
        if not (isinstance(head, NoHead) and head.pooler):
            raise ValueError(f"EncoderOnly.pooled: expected a head with a pooler, NoHead(pooler=True), received {head}")
        return cast(jax.Array, self.head.pooled(self.features(tokens, **options), options.get("valid")))
