"""What decoder-only and encoder-only models are: embedding, one stack, a head."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, cast

from transformer_jax.layers.base import Context, check_positive
from transformer_jax.layers.embedding import Embedding
from transformer_jax.layers.head import Head, LanguageModel, Unembedding
from transformer_jax.layers.initialization import Initialization, NormalInit
from transformer_jax.layers.stack import Stack
from transformer_jax.models.base import Model, ModelConfig, prepared
from transformer_jax.typing import Array, Hidden, Logits, Positions, Tokens, Valid


@dataclass(frozen=True)
class OneStackConfig(ModelConfig):
    """Base of the configs of models with one stack.

    Attributes:
        vocab_size: None where the data decides; to be filled in before the model is used.
        d_model: width of the residual stream.
        max_length: the longest sequence.
        stack: groups of residual sublayers.
        embedding: of the tokens, positions included.
        head: what is made of the last hidden state.
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
        self._check()


class OneStack(Model):
    """Base of the models with one stack."""

    def setup(self) -> None:
        self._check_fields()
        c, build = self.config, self.build(self.config.stack)
        self.embedding = c.embedding.make(build, c.vocab_size)
        self.stack = c.stack.make(build)
        self.head = c.head.make(build, c.vocab_size)

    def __call__(
        self, tokens: Tokens, *, positions: Positions | None = None, segment_ids: Array | None = None, valid: Valid | None = None,
        token_types: Tokens | None = None, mask: Any = None,
    ) -> Logits | Hidden:  # fmt: skip
        """The head's logits: of tokens or their classes `[B, T, V]`, or of the sequence's class `[B, V]`; without logits, the hidden state that it gives.

        Args:
            tokens: integers `[B, T]`, T at most max_length. A token outside the vocabulary gives NaN.
            positions: `[B, T]`; 0, 1, 2, ... unless given.
            segment_ids: `[B, T]`; a token sees only its own segment (packed sequences; give `positions` too).
            valid: `[B, T]`, False at padding, on either side; positions then count the valid tokens, unless given.
            token_types: `[B, T]`, for an embedding that has them; 0 unless given.
            mask: one of `pallas_kernels.masks`, a boolean array or a function, beside those of the layers.

        Returns:
            Logits in float32 (float64 where compute is).

        Raises:
            ValueError: T beyond max_length, tokens that are no `[B, T]` integers, or options of other shapes.
        """
        x, unembedding = self.prelogits(tokens, positions=positions, segment_ids=segment_ids, valid=valid, token_types=token_types, mask=mask)
        return x if unembedding is None else unembedding(x)

    def prelogits(self, tokens: Tokens, **options: Any) -> tuple[Hidden, Unembedding | None]:
        """What the last product takes, `[B, T, D]` or `[B, D]`, and the product, from which a fused loss starts; arguments as for a call."""
        x = self.features(tokens, **options)
        return cast(tuple[Hidden, Unembedding | None], self.head(x, self.embedding.table(), options.get("valid")))

    def features(
        self, tokens: Tokens, *, positions: Positions | None = None, segment_ids: Array | None = None, valid: Valid | None = None,
        token_types: Tokens | None = None, mask: Any = None,
    ) -> Hidden:  # fmt: skip
        """The last hidden state `[B, T, D]`, after the final norm; arguments as for a call."""
        tokens, positions, mask = prepared(
            tokens, self.config.max_length, "tokens", positions=positions, segment_ids=segment_ids, valid=valid, mask=mask, token_types=token_types
        )  # fmt: skip
        x, _ = self.stack(self.embedding(tokens, positions, token_types), Context(positions, mask, valid, segment_ids))
        return x
