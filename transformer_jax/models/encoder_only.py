"""Encoder-only models."""

from dataclasses import dataclass
from typing import Any, ClassVar

from transformer_jax.layers.head import Head, MaskedLanguageModel
from transformer_jax.models.base import ModelConfig
from transformer_jax.models.one_stack import OneStack, OneStackConfig


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
