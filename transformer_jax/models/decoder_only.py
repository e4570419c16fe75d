"""Decoder-only models: embedding, one stack, a head."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from pallas_kernels import masks
from pallas_kernels.flash.request import as_mask
from transformer_jax.layers.base import Build, Context, check_positive
from transformer_jax.layers.embedding import Embedding
from transformer_jax.layers.head import Head, LanguageModel, Unembedding
from transformer_jax.layers.initialization import Initialization, NormalInit
from transformer_jax.layers.masks import both
from transformer_jax.layers.stack import Stack
from transformer_jax.models.base import ModelConfig
from transformer_jax.precision import Precision
from transformer_jax.typing import Array, Hidden, Logits, Positions, Tokens, Valid


@dataclass(frozen=True)
class DecoderOnlyConfig(ModelConfig):
    """A decoder-only model.

    Attributes:
        vocab_size: None where the data decides; to be filled in before the model is used.
        d_model: width of the residual stream.
        max_length: the longest sequence.
        stack: groups of residual sublayers.
        embedding: of the tokens, positions included.
        head: to logits.
        initialization: recipe for the parameters.
    """

    vocab_size: int | None
    _: KW_ONLY
    d_model: int
    max_length: int
    stack: Stack
    embedding: Embedding = Embedding()
    head: Head = LanguageModel()
    initialization: Initialization = NormalInit()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "vocab_size", "d_model", "max_length")
        build = Build(self.d_model, max_length=self.max_length)
        # What cannot work at this width refuses here.
        self.embedding.position.make(build)
        for group in self.stack.groups:
            for sublayer in group.sublayers:
                sublayer.layer.make(build)

    def make(self, **fields: Any) -> "DecoderOnly":
        """The model; `fields` are those of `DecoderOnly` after the first."""
        return DecoderOnly(self, **fields)


class Cache(struct.PyTreeNode):
    """What a model remembers of earlier tokens.

    Attributes:
        index: slots in use, a scalar.
        positions: of the token in each slot, `[B, S]`.
        valid: whether a slot holds a token that may be attended to, `[B, S]`.
        layers: the sublayers' own caches.
    """

    index: jax.Array
    positions: Positions
    valid: Valid
    layers: Any


class DecoderOnly(nn.Module):
    """A decoder-only model. `init(key, tokens)` gives `{"params": ...}`; `apply(variables, tokens)` gives logits `[B, T, V]`, float32.

    Attributes:
        config: what it is made of.
        precision: dtypes of parameters and compute.
        training: whether dropout is on; then `apply` needs `rngs={"dropout": key}`.
        backend: of attention; see `pallas_kernels.explain`.
        stacked: whether a group's layers share arrays with a leading layer axis; see `unstacked`.
        unroll: repetitions of a group to one turn of its loop: 1 compiles fast whatever the depth, all of them (0) runs faster on CPU. Parameters, dropout and
            outputs are the same bit for bit, gradients to rounding.
    """

    config: DecoderOnlyConfig
    precision: Precision = Precision()
    training: bool = False
    backend: str = "auto"
    stacked: bool = True
    unroll: int = 1

    def setup(self) -> None:
        c, build = self.config, self.build
        for name, value, kind in (("config", c, DecoderOnlyConfig), ("precision", self.precision, Precision)):
            if not isinstance(value, kind):
                raise TypeError(f"DecoderOnly.{name}: expected a {kind.__name__}, received {value!r}")
        if c.vocab_size is None:
            raise ValueError("DecoderOnlyConfig.vocab_size: expected a number, received None; fill it in: config.replace(vocab_size=vocabulary.vocab_size)")
        self.embedding = c.embedding.make(build, c.vocab_size)
        self.stack = c.stack.make(build)
        self.head = c.head.make(build, c.vocab_size)

    @property
    def build(self) -> Build:
        """What the model's layers are built for."""
        c = self.config
        return Build(
            c.d_model, c.max_length, c.stack.depth, c.initialization, self.precision, self.training, self.backend, self.stacked, self.unroll
        )  # fmt: skip

    def __call__(
        self, tokens: Tokens, *, positions: Positions | None = None, segment_ids: Array | None = None, valid: Valid | None = None, mask: Any = None
    ) -> Logits:
        """Logits of each next token.

        Args:
            tokens: integers `[B, T]`, T at most max_length. A token outside the vocabulary gives NaN.
            positions: `[B, T]`; 0, 1, 2, ... unless given.
            segment_ids: `[B, T]`; a token sees only its own segment (packed sequences; give `positions` too).
            valid: `[B, T]`, False at padding, on either side; positions then count the valid tokens, unless given.
            mask: one of `pallas_kernels.masks`, a boolean array or a function, beside those of the layers.

        Returns:
            `[B, T, V]`, float32 (float64 where compute is).

        Raises:
            ValueError: T beyond max_length, or tokens that are no `[B, T]` integers.
        """
        x = self.features(tokens, positions=positions, segment_ids=segment_ids, valid=valid, mask=mask)
        return self.unembedding()(x)

    def features(
        self, tokens: Tokens, *, positions: Positions | None = None, segment_ids: Array | None = None, valid: Valid | None = None, mask: Any = None
    ) -> Hidden:
        """The last hidden state `[B, T, D]`, after the final norm; arguments as for a call."""
        _check_tokens(tokens, self.config.max_length, "max_length")
        mask = as_mask(mask)
        for name, given in (("positions", positions), ("segment_ids", segment_ids), ("valid", valid)):
            if given is not None and jnp.shape(given) != jnp.shape(tokens):
                raise ValueError(f"{name}: expected the shape of tokens, {jnp.shape(tokens)}, received {jnp.shape(given)}")
        if positions is None and valid is not None:
            positions = count_valid(valid)
        if segment_ids is not None:
            mask = both(mask, masks.segments(segment_ids))
        if valid is not None:
            mask = both(mask, masks.valid(valid))
            tokens = jnp.where(valid, tokens, 0)  # padding may be any number
        x = self.embedding(tokens, positions)
        x, _ = self.stack(x, Context(positions=positions, mask=mask))
        return x

    def unembedding(self) -> Unembedding:
        """What maps features to logits: where a fused loss starts."""
        head: Unembedding = self.head(self.embedding.table())
        return head

    def init_cache(self, batch: int, max_length: int) -> Cache:
        """An empty cache for `batch` sequences of up to `max_length` tokens; needs no parameters: `model.init_cache(2, 64)`."""
        if max_length > self.config.max_length:
            raise ValueError(f"max_length: expected at most the model's own, {self.config.max_length}, received {max_length}")
        zeros = jnp.zeros((batch, max_length), jnp.int32)
        return Cache(jnp.int32(0), zeros, zeros.astype(bool), self.config.stack.init_cache(self.build, batch, max_length))

    def step(self, tokens: Tokens, cache: Cache, *, valid: Valid | None = None) -> tuple[Logits, Cache]:
        """The next tokens, one or many: their logits, given what the cache remembers.

        Args:
            tokens: `[B, T]`.
            cache: from `init_cache` or an earlier step.
            valid: `[B, T]`, False at padding; all are valid unless given.

        Returns:
            logits `[B, T, V]`, NaN where the cache is too short for the tokens, and the cache.
        """
        slots = cache.positions.shape[1]
        _check_tokens(tokens, slots, "the cache's length")
        B, T = tokens.shape
        valid = jnp.ones((B, T), bool) if valid is None else valid
        tokens = jnp.where(valid, tokens, 0)
        positions = cache.valid.sum(-1, keepdims=True, dtype=jnp.int32) + count_valid(valid)

        def write(old: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(old, new, cache.index, 1)

        fits = cache.index + T <= slots
        cache = cache.replace(positions=write(cache.positions, positions), valid=write(cache.valid, valid))
        context = Context(positions, masks.valid(cache.valid), kv_positions=cache.positions, index=cache.index)
        x, layers = self.stack(self.embedding(tokens, positions), context, cache.layers)
        logits = jnp.where(fits, self.unembedding()(x), jnp.nan)
        return logits, cache.replace(index=cache.index + T, layers=layers)


def count_valid(valid: Valid) -> Positions:
    """Positions `[B, T]` that count the valid tokens before each; padding repeats a neighbour's."""
    return jnp.maximum(jnp.cumsum(valid, -1, dtype=jnp.int32) - 1, 0)


def _check_tokens(tokens: Any, longest: int, what: str) -> None:
    if jnp.ndim(tokens) != 2 or not jnp.issubdtype(jnp.result_type(tokens), jnp.integer):
        raise ValueError(f"tokens: expected integers of shape [B, T], received {jnp.result_type(tokens)} {jnp.shape(tokens)}")
    if tokens.shape[1] > longest:
        raise ValueError(f"tokens: expected at most {what} = {longest} to a sequence, received {tokens.shape[1]}; cut it, or build with a larger one")
