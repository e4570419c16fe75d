"""Encoder-decoder models."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, cast

import jax.numpy as jnp

from pallas_kernels import masks
from transformer_jax.config import nearest
from transformer_jax.layers.base import Context, check_positive
from transformer_jax.layers.embedding import Embedding
from transformer_jax.layers.head import Head, LanguageModel, Unembedding
from transformer_jax.layers.initialization import Initialization, NormalInit
from transformer_jax.layers.masks import both
from transformer_jax.layers.stack import Stack
from transformer_jax.models.base import Model, ModelConfig, logits, prepared
from transformer_jax.models.cache import Cache, advance, empty, remember
from transformer_jax.typing import Array, Hidden, Logits, Positions, Tokens, Valid

OPTIONS = ("positions", "segment_ids", "valid", "token_types", "mask")


@dataclass(frozen=True)
class EncoderDecoderConfig(ModelConfig):
    """An encoder-decoder model (Vaswani et al., arXiv:1706.03762).

    Attributes:
        vocab_size: None where the data decides; to be filled in before the model is used.
        d_model: width of the residual streams.
        max_length: the longest source, and the longest target.
        encoder: groups of residual sublayers, attention looking both ways.
        decoder: the same, attention causal, and `CrossAttention` to what the encoder made.
        source_embedding, target_embedding: of the tokens, positions included.
        share_embedding: whether both sides have one table of tokens (section 3.4).
        head: what is made of the decoder's last hidden state; tied to the target's table.
        initialization: recipe for the parameters.
    """

    vocab_size: int | None
    _: KW_ONLY
    d_model: int
    max_length: int
    encoder: Stack
    decoder: Stack
    source_embedding: Embedding = Embedding()
    target_embedding: Embedding = Embedding()
    share_embedding: bool = True
    head: Head = LanguageModel()
    initialization: Initialization = NormalInit()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "vocab_size", "d_model", "max_length")
        self._check()

    def example(self, batch: int = 1, length: int = 1) -> tuple[Tokens, ...]:
        return 2 * super().example(batch, length)

    def make(self, **fields: Any) -> "EncoderDecoder":
        """The model; `fields` are those of `EncoderDecoder` after the first."""
        return EncoderDecoder(self, **fields)


class EncoderDecoder(Model):
    """An encoder-decoder model. `init(key, source, target)` gives `{"params": ...}`; `apply(variables, source, target)` logits `[B, T, V]`, float32.

    Fields: `Model`'s.
    """

    kind: ClassVar[type[ModelConfig]] = EncoderDecoderConfig

    def setup(self) -> None:
        self._check_fields()
        c = self.config
        encoder, decoder = self.build(c.encoder), self.build(c.decoder)
        self.source_embedding = c.source_embedding.make(encoder, c.vocab_size)
        self.target_embedding = c.target_embedding.make(decoder, c.vocab_size, own_table=not c.share_embedding)
        self.encoder, self.decoder = c.encoder.make(encoder), c.decoder.make(decoder)
        self.head = c.head.make(decoder, c.vocab_size)

    def __call__(self, source: Tokens, target: Tokens, **options: Any) -> Logits | Hidden:
        """Logits of each next token of the target, given the source and the target so far.

        Args:
            source: integers `[B, S]`.
            target: integers `[B, T]`, each at most max_length long, beginning with whatever begins a target.
            options: those of the other models' calls, as `source_positions`, `source_segment_ids`, `source_valid`, `source_token_types`, `source_mask`, and
                `target_...`. With segment ids on both sides a target sees only the source of its own segment.

        Returns:
            `[B, T, V]`, float32 (float64 where compute is).

        Raises:
            ValueError: sequences or options that do not fit. TypeError: an option that there is not.
        """
        x, unembedding = self.prelogits(source, target, **options)
        return x if unembedding is None else unembedding(x)

    def prelogits(self, source: Tokens, target: Tokens, **options: Any) -> tuple[Hidden, Unembedding | None]:
        """What the last product takes, and the product, from which a fused loss starts; arguments as for a call."""
        x = self.features(source, target, **options)
        return cast(tuple[Hidden, Unembedding | None], self.head(x, self._table(), options.get("target_valid")))

    def features(self, source: Tokens, target: Tokens, **options: Any) -> Hidden:
        """The decoder's last hidden state `[B, T, D]`; arguments as for a call."""
        here, there = _by_side(options)
        memory = self.encode(source, **here)
        tokens, positions, mask = prepared(target, self.config.max_length, "target", **there)
        seen = None if here["valid"] is None else masks.valid(here["valid"])
        if here["segment_ids"] is not None and there["segment_ids"] is not None:
            seen = both(seen, masks.segments(there["segment_ids"], here["segment_ids"]))
        context = Context(positions, mask, there["valid"], there["segment_ids"], memory=memory, memory_mask=seen)
        x, _ = self.decoder(self._target(tokens, positions, there["token_types"]), context)
        return cast(Hidden, x)

    def encode(
        self, source: Tokens, *, positions: Positions | None = None, segment_ids: Array | None = None, valid: Valid | None = None,
        token_types: Tokens | None = None, mask: Any = None,
    ) -> Hidden:  # fmt: skip
        """What the decoder looks at: the encoder's last hidden state `[B, S, D]`. Options as for `DecoderOnly`'s call."""
        tokens, positions, mask = prepared(
            source, self.config.max_length, "source", positions=positions, segment_ids=segment_ids, valid=valid, mask=mask, token_types=token_types
        )  # fmt: skip
        memory, _ = self.encoder(self.source_embedding(tokens, positions, token_types), Context(positions, mask, valid, segment_ids))
        return cast(Hidden, memory)

    def init_cache(self, batch: int, max_length: int, memory_length: int = 0) -> Cache:
        """An empty cache for targets of up to `max_length` tokens and a memory of `memory_length` places, which the first step may also bring along."""
        return empty(self.config.decoder, self.build(self.config.decoder), batch, max_length, memory_length)

    def step(
        self, tokens: Tokens, cache: Cache, memory: Hidden | None = None, memory_valid: Valid | None = None, *, valid: Valid | None = None
    ) -> tuple[Logits, Cache]:
        """The target's next tokens, one or many: their logits, given what the cache remembers.

        Args:
            tokens: `[B, T]`.
            cache: from `init_cache` or an earlier step.
            memory: from `encode`, at the first step; its keys and values are kept. Later steps read them.
            memory_valid: `[B, S]`, False at the source's padding.
            valid: `[B, T]`, False at the target's padding; all are valid unless given.

        Returns:
            logits `[B, T, V]`, NaN where the cache is too short for the tokens, and the cache.

        Raises:
            ValueError: the head gives no logits.
        """
        tokens, context, cache, fits = advance(cache, tokens, valid)
        context, cache = remember(cache, context, memory, memory_valid)
        x, layers = self.decoder(self._target(tokens, context.positions, None), context, cache.layers)
        x, unembedding = self.head(x, self._table(), valid)
        return jnp.where(fits, logits(self.config.head, x, unembedding), jnp.nan), cache.replace(layers=layers)

    def _table(self) -> Array:
        embedding = self.source_embedding if self.config.share_embedding else self.target_embedding
        table: Array = embedding.table()
        return table

    def _target(self, tokens: Tokens, positions: Positions | None, token_types: Tokens | None) -> Hidden:
        x: Hidden = self.target_embedding(tokens, positions, token_types, self._table())
        return x


def _by_side(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The source's options and the target's."""
    known = [f"{side}_{name}" for side in ("source", "target") for name in OPTIONS]
    for name in options:
        if name not in known:
            raise TypeError(f"EncoderDecoder takes no option {name!r}{nearest(name, known)}; it takes {', '.join(known)}")
    source, target = ({name: options.get(f"{side}_{name}") for name in OPTIONS} for side in ("source", "target"))
    return source, target
