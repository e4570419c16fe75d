"""From tokens to hidden states."""

from dataclasses import KW_ONLY, dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.config import Config
from transformer_jax.layers.base import Build, check_rate, token_positions
from transformer_jax.layers.norm import NoNorm, Norm
from transformer_jax.layers.positions.base import NoPosition, Position, check_acts_on
from transformer_jax.typing import Hidden, Positions, Tokens


@dataclass(frozen=True)
class Embedding(Config):
    """drop(norm(position(scale * table[token]))). A token outside the vocabulary gives NaN.

    Attributes:
        position: added to the embeddings: `Learned()`, `Sinusoidal()`.
        norm: of the sum (BERT, BLOOM).
        dropout: rate.
        scale: whether embeddings are multiplied by sqrt(d_model) (arXiv:1706.03762, section 3.4; Gemma).
    """

    position: Position = NoPosition()
    _: KW_ONLY
    norm: Norm = NoNorm()
    dropout: float = 0.0
    scale: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rate(self, "dropout")
        check_acts_on(self, self.position, "embeddings")

    def make(self, build: Build, vocab_size: int) -> nn.Module:
        return EmbeddingModule(self, build, vocab_size)


class EmbeddingModule(nn.Module):
    config: Embedding
    build: Build
    vocab_size: int

    def setup(self) -> None:
        build = self.build
        init = build.initialization.kernel("embedding", self.vocab_size, build.d_model, build.depth)
        self.embedding = self.param("embedding", init, (self.vocab_size, build.d_model), jnp.dtype(build.precision.params))
        self.position, self.norm = self.config.position.make(build), self.config.norm.make(build)
        self.drop = nn.Dropout(self.config.dropout, deterministic=not build.training)

    def __call__(self, tokens: Tokens, positions: Positions | None) -> Hidden:
        # A negative index would count from the end; like every other token that is not in the vocabulary it must not pass unseen.
        # Narrow integers are widened, for vocab_size may be beyond them.
        tokens = tokens.astype(jnp.int32) if tokens.dtype.itemsize < 4 else tokens
        tokens = jnp.where(tokens < 0, self.vocab_size, tokens)
        x = jnp.take(self.embedding, tokens, axis=0, mode="fill").astype(self.build.precision.compute)
        if self.config.scale:
            x = x * jnp.asarray(self.build.d_model**0.5, x.dtype)
        return self.drop(self.norm(self.position(x, token_positions(positions, x))))

    def table(self) -> jax.Array:
        """The embeddings `[V, D]`, for a head that is tied to them."""
        return self.embedding
