"""Self-attention, and the heads that it shares with attention to a memory."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.layers.base import Build, Context, Linear, Mixer, check_positive, token_positions
from transformer_jax.layers.masks import Mask, both
from transformer_jax.layers.mixers.base import Attending, AttendingModule
from transformer_jax.layers.norm import NoNorm, Norm
from transformer_jax.layers.positions.base import NoPosition, Position, check_acts_on
from transformer_jax.typing import Heads, Hidden, Positions


@dataclass(frozen=True)
class MultiHead(Attending):
    """Base of layers of attention between heads that are projected from their inputs. Further fields: `Attending`'s.

    Attributes:
        num_kv_heads: of keys and values; `num_heads` unless given. 1 is multi-query (arXiv:1911.02150), in between grouped-query (arXiv:2305.13245).
        head_dim: d_model / num_heads unless given.
        qk_norm: of the queries, and of the keys (arXiv:2302.05442, section 2).
        qk_norm_over: the features of each "head", with one scale [H] for all of them (Qwen3), or of all "heads" at once, with a scale [N * H], of keys
            [K * H] (OLMo 2, arXiv:2501.00656).
    """

    _: KW_ONLY
    num_kv_heads: int | None = None
    head_dim: int | None = None
    qk_norm: Norm = NoNorm()
    qk_norm_over: Literal["head", "heads"] = "head"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "num_kv_heads", "head_dim")
        if self.num_heads % self.kv_heads:
            name = type(self).__name__
            raise ValueError(f"{name}.num_kv_heads: expected a divisor of num_heads = {self.num_heads}, received {self.num_kv_heads}")

    @property
    def kv_heads(self) -> int:
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    def width(self, build: Build) -> int:
        """Features of a head."""
        if self.head_dim is None and build.d_model % self.num_heads:
            name = type(self).__name__
            raise ValueError(f"{name}.num_heads: expected a divisor of d_model = {build.d_model}, received {self.num_heads}; choose another, or set head_dim")
        return self.head_dim or build.d_model // self.num_heads

    def _empty(self, build: Build, batch: int, length: int) -> Any:
        # A cache lies [B, K, S, H], so that a head's keys follow one another in memory.
        shape = (batch, self.kv_heads, length, self.width(build))
        return {name: jnp.zeros(shape, build.precision.compute) for name in ("key", "value")}


class MultiHeadModule(AttendingModule):
    """Base of the modules: projections to heads and back."""

    def setup(self) -> None:
        super().setup()
        c, build = self.config, self.build
        d, h = build.d_model, c.width(build)
        self.query = Linear((d,), (c.num_heads, h), "query", build, c.qkv_bias)
        self.key = Linear((d,), (c.kv_heads, h), "key", build, c.qkv_bias)
        self.value = Linear((d,), (c.kv_heads, h), "value", build, c.qkv_bias)
        self.out = Linear((c.num_heads, h), (d,), "attention_out", build, c.out_bias)
        self.query_norm, self.key_norm = c.qk_norm.make(build), c.qk_norm.make(build)

    def _normed(self, norm: nn.Module, x: Heads) -> Heads:
        y: Heads = norm(x) if self.config.qk_norm_over == "head" else norm(x.reshape(*x.shape[:-2], -1)).reshape(x.shape)
        return y


@dataclass(frozen=True)
class Attention(MultiHead, Mixer):
    """out(attention(position(norm(query x)), position(norm(key x)), value x)) (arXiv:1706.03762, section 3.2.2). Further fields: `MultiHead`'s.

    Attributes:
        mask: which keys a query may see: `Causal()`, `NoMask()`, `Causal() & SlidingWindow(512)`, ...
        position: turns queries and keys: `Rope()`.
    """

    _: KW_ONLY
    mask: Mask
    position: Position = NoPosition()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_acts_on(self, self.position, "heads")

    def make(self, build: Build) -> nn.Module:
        self.width(build)
        return AttentionModule(self, build)

    def init_cache(self, build: Build, batch: int, length: int, memory_length: int = 0) -> Any:
        return self._empty(build, batch, length)


class AttentionModule(MultiHeadModule):
    def setup(self) -> None:
        super().setup()
        self.position = self.config.position.make(self.build)

    def __call__(self, x: Hidden, context: Context) -> Hidden:
        q, k, v = self._project(x, context)
        return self._see(q, k, v, context, context.positions)

    def step(self, x: Hidden, context: Context, cache: Any) -> tuple[Hidden, Any]:
        q, k, v = self._project(x, context)
        new = {"key": k, "value": v}
        at: Any = context.index
        cache = {name: jax.lax.dynamic_update_slice_in_dim(cache[name], jnp.swapaxes(new[name], 1, 2), at, 2) for name in cache}
        k, v = (jnp.swapaxes(cache[name], 1, 2) for name in ("key", "value"))
        return self._see(q, k, v, context, context.kv_positions), cache

    def _project(self, x: Hidden, context: Context) -> tuple[Heads, Heads, Heads]:
        positions = token_positions(context.positions, x)
        q = self.position(self._normed(self.query_norm, self.query(x)), positions)
        k = self.position(self._normed(self.key_norm, self.key(x)), positions)
        return q, k, self.value(x)

    def _see(self, q: Heads, k: Heads, v: Heads, context: Context, kv_positions: Positions | None) -> Hidden:
        mask = both(self.config.mask.make(), context.mask)
        return self.out(self._attend(q, k, v, mask, context.score, context.positions, kv_positions, self.config.scale))
