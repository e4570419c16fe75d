"""From tokens to hidden states."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.config import Config
from transformer_jax.layers.base import Build, check_not_negative, check_rate, token_positions
from transformer_jax.layers.norm import NoNorm, Norm
from transformer_jax.layers.positions.base import NoPosition, Position, check_acts_on
from transformer_jax.typing import Hidden, Positions, Tokens


@dataclass(frozen=True)
class Embedding(Config):
    """drop(norm(position(scale * table[token] + types[token type]))). A token, or a type, outside its table gives NaN.

    Attributes:
        position: added to the embeddings: `Learned()`, `Sinusoidal()`.
        norm: of the sum (BERT, BLOOM).
        dropout: rate.
        scale: whether embeddings are multiplied by sqrt(d_model) (arXiv:1706.03762, section 3.4; Gemma).
        token_types: how many there are, 0 for a model without (BERT has 2, one for each sentence of a pair: arXiv:1810.04805, section 3).
    """

    position: Position = NoPosition()
    _: KW_ONLY
    norm: Norm = NoNorm()
    dropout: float = 0.0
    scale: bool = False
    token_types: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rate(self, "dropout")
        check_not_negative(self, "token_types")
        check_acts_on(self, self.position, "embeddings")

    def make(self, build: Build, vocab_size: int, *, own_table: bool = True) -> nn.Module:
        """A module with `__call__(tokens, positions, token_types=None, table=None) -> x`; without a table of its own it is to be given one, `[V, D]`."""
        return EmbeddingModule(self, build, vocab_size, own_table)


class EmbeddingModule(nn.Module):
    config: Embedding
    build: Build
    vocab_size: int
    own_table: bool = True

    def setup(self) -> None:
        c, build = self.config, self.build

        def table(name: str, rows: int) -> jax.Array:
            init = build.initialization.kernel("embedding", rows, build.d_model, build.depth)
            made: jax.Array = self.param(name, init, (rows, build.d_model), jnp.dtype(build.precision.params))
            return made

        self.embedding = table("embedding", self.vocab_size) if self.own_table else None
        self.types = table("token_types", c.token_types) if c.token_types else None
        self.position, self.norm = c.position.make(build), c.norm.make(build)
        self.drop = nn.Dropout(c.dropout, deterministic=not build.training)

    def __call__(self, tokens: Tokens, positions: Positions | None, token_types: Tokens | None = None, table: jax.Array | None = None) -> Hidden:
        x = self._rows(self.embedding if table is None else table, tokens)
        if self.config.scale:
            x = x * jnp.asarray(self.build.d_model**0.5, x.dtype)
        if self.types is not None:
            x = x + self._rows(self.types, jnp.zeros_like(tokens) if token_types is None else token_types)
        elif token_types is not None:
            raise ValueError("token_types: expected none, for the model has none (Embedding.token_types = 0), received an array")
        return self.drop(self.norm(self.position(x, token_positions(positions, x))))

    def _rows(self, table: Any, ids: jax.Array) -> jax.Array:
        # A negative index would count from the end; like every other id that is not in the table it must not pass unseen.
        # Narrow integers are widened, for the table may be longer than they reach.
        ids = ids.astype(jnp.int32) if ids.dtype.itemsize < 4 else ids
        return jnp.take(table, jnp.where(ids < 0, len(table), ids), axis=0, mode="fill").astype(self.build.precision.compute)

    def table(self) -> jax.Array:
        """The embeddings `[V, D]`, for a head that is tied to them."""
        assert self.embedding is not None
        return self.embedding
