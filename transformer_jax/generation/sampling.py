"""Drawing the next token from logits."""

from dataclasses import KW_ONLY, dataclass

import jax
import jax.numpy as jnp

from transformer_jax.config import Config
from transformer_jax.typing import Array


@dataclass(frozen=True)
class Sampling(Config):
    """How the next token is drawn.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest.
        top_k: draw among so many of the likeliest.
        top_p: draw among the likeliest that together have at least this probability (Holtzman et al., arXiv:1904.09751, section 3.1).
        never: tokens that are not drawn; those beyond the vocabulary never are.
    """

    temperature: float = 1.0
    _: KW_ONLY
    top_k: int | None = None
    top_p: float | None = None
    never: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature >= 0:
            raise ValueError(f"temperature: expected a number of at least 0, received {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k: expected at least 1, received {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected a probability in (0, 1], received {self.top_p}")
        if any(token < 0 for token in self.never):
            raise ValueError(f"never: expected tokens, integers of at least 0, received {self.never}")

    def __call__(self, logits: Array, key: Array) -> Array:
        """Tokens `[B]`, int32, drawn from logits `[B, V]`."""
        if self.never:
            logits = logits.at[:, jnp.array(self.never)].set(-jnp.inf)
        if self.temperature == 0:
            return jnp.argmax(logits, -1).astype(jnp.int32)
        logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = jax.lax.top_k(logits, self.top_k)[0][:, -1:]
            logits = jnp.where(logits >= least, logits, -jnp.inf)
        if self.top_p is not None and self.top_p < 1:
            ordered = jnp.sort(logits, -1, descending=True)
            p = jax.nn.softmax(ordered, -1)
            before = jnp.cumsum(p, -1) - p
            least = jnp.where(before < self.top_p, ordered, jnp.inf).min(-1, keepdims=True)
            logits = jnp.where(logits >= least, logits, -jnp.inf)
        return jax.random.categorical(key, logits, -1).astype(jnp.int32)
