"""Decoder-only models."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp

from transformer_jax.models.base import ModelConfig, logits
from transformer_jax.models.cache import Cache, advance, empty
from transformer_jax.models.one_stack import OneStack, OneStackConfig
from transformer_jax.typing import Logits, Tokens, Valid


@dataclass(frozen=True)
class DecoderOnlyConfig(OneStackConfig):
    """A decoder-only model: a stack whose attention is causal. Fields: `OneStackConfig`'s."""

    def make(self, **fields: Any) -> "DecoderOnly":
        """The model; `fields` are those of `DecoderOnly` after the first."""
        return DecoderOnly(self, **fields)


class DecoderOnly(OneStack):
    """A decoder-only model. `init(key, tokens)` gives `{"params": ...}`; `apply(variables, tokens)` gives logits `[B, T, V]`, float32. Fields: `Model`'s."""

    kind: ClassVar[type[ModelConfig]] = DecoderOnlyConfig

    def init_cache(self, batch: int, max_length: int) -> Cache:
        """An empty cache for `batch` sequences of up to `max_length` tokens; needs no parameters: `model.init_cache(2, 64)`."""
        return empty(self.config.stack, self.build(self.config.stack), batch, max_length)

    def step(self, tokens: Tokens, cache: Cache, *, valid: Valid | None = None) -> tuple[Logits, Cache]:
        """The next tokens, one or many: their logits, given what the cache remembers.

        Args:
            tokens: `[B, T]`.
            cache: from `init_cache` or an earlier step.
            valid: `[B, T]`, False at padding; all are valid unless given.

        Returns:
            logits `[B, T, V]`, NaN where the cache is too short for the tokens, and the cache.

        Raises:
            ValueError: the head gives no logits.
        """
        tokens, context, cache, fits = advance(cache, tokens, valid)
        x, layers = self.stack(self.embedding(tokens, context.positions), context, cache.layers)
        x, unembedding = self.head(x, self.embedding.table(), valid)
        return jnp.where(fits, logits(self.config.head, x, unembedding), jnp.nan), cache.replace(layers=layers)
