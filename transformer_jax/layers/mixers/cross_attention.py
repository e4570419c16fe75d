"""Attention of one sequence to another."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from transformer_jax.layers.base import Build, Context
from transformer_jax.layers.mixers.attention import MultiHead, MultiHeadModule
from transformer_jax.typing import Heads, Hidden


@dataclass(frozen=True)
class CrossAttention(MultiHead):
    """out(attention(norm(query x), norm(key memory), value memory)), where memory is an encoder's output (arXiv:1706.03762, section 3.2.3).

    Fields: `MultiHead`'s. A score sees the memory's places as the positions of the keys. The stack's scores are not applied.
    """

    _: KW_ONLY

    def make(self, build: Build) -> nn.Module:
        self.width(build)
        return CrossAttentionModule(self, build)

    def init_cache(self, build: Build, batch: int, length: int, memory_length: int = 0) -> Any:
        return self._empty(build, batch, memory_length)


class CrossAttentionModule(MultiHeadModule):
    def __call__(self, x: Hidden, context: Context) -> Hidden:
        return self._see(x, *self._remember(context.memory), context)

    def step(self, x: Hidden, context: Context, cache: Any) -> tuple[Hidden, Any]:
        if context.memory is not None:
            cache = {name: jnp.swapaxes(a, 1, 2) for name, a in zip(("key", "value"), self._remember(context.memory))}
        k, v = (jnp.swapaxes(cache[name], 1, 2) for name in ("key", "value"))
        return self._see(x, k, v, context), cache

    def _remember(self, memory: Hidden | None) -> tuple[Heads, Heads]:
        if memory is None:
            raise ValueError("Context.memory: expected an encoder's output [B, S, D] for CrossAttention, received None; put the stack in an EncoderDecoder")
        return self._normed(self.key_norm, self.key(memory)), self.value(memory)

    def _see(self, x: Hidden, k: Heads, v: Heads, context: Context) -> Hidden:
        q = self._normed(self.query_norm, self.query(x))
        return self.out(self._attend(q, k, v, context.memory_mask, (), context.positions, None, self.config.scale))
