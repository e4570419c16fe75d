"""Attention whose keys and values are projected from one small vector for each token, which is all that is remembered of it."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.layers.base import Build, Context, Linear, Mixer, check_positive, token_positions
from transformer_jax.layers.masks import Mask, both
from transformer_jax.layers.mixers.base import Attending, AttendingModule
from transformer_jax.layers.norm import Norm, RMSNorm
from transformer_jax.layers.positions.base import NoPosition, Position, check_acts_on
from transformer_jax.typing import Array, Heads, Hidden, Positions


@dataclass(frozen=True)
class LatentAttention(Attending, Mixer):
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1). Further fields: `Attending`'s; biases are of what reads x or writes y.

        c, r = split(kv_down x)                  c = norm(c)    r = position(r), one key for all heads
        k, v = split(kv_up c)                    of each head
        q, p = split(query_up norm(query_down x))               p = position(p)
        y = out(attention([q, p], [k, r], v))

    A cache holds c and r, `[B, S, kv_rank + rope_head_dim]`. From there q.k = (q.kv_up).c: a step attends with queries as wide as a cache's slot to one key,
    the slot itself, and projects the sum of p c up to the heads' values, so that no keys or values of heads are made (the end of section 2.1.2).

    Attributes:
        q_rank: features of the queries' latent; None where queries are projected from x itself (DeepSeek-V2-Lite).
        kv_rank: features of c.
        nope_head_dim: features of q and k, which have no position.
        rope_head_dim: features of p and r, which have one.
        value_head_dim: features of v.
        mask: which keys a query may see.
        position: turns p and r: `Rope()`.
        q_norm, kv_norm: of the latents.
    """

    _: KW_ONLY
    q_rank: int | None = None
    kv_rank: int
    nope_head_dim: int
    rope_head_dim: int
    value_head_dim: int
    mask: Mask
    position: Position = NoPosition()
    q_norm: Norm = RMSNorm()
    kv_norm: Norm = RMSNorm()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "q_rank", "kv_rank", "nope_head_dim", "rope_head_dim", "value_head_dim")
        check_acts_on(self, self.position, "heads")

    def make(self, build: Build) -> nn.Module:
        return LatentAttentionModule(self, build)

    def init_cache(self, build: Build, batch: int, length: int, memory_length: int = 0) -> Any:
        return {"latent": jnp.zeros((batch, length, self.kv_rank + self.rope_head_dim), build.precision.compute)}


class LatentAttentionModule(AttendingModule):
    def setup(self) -> None:
        super().setup()
        c, build = self.config, self.build
        d, n, qk = build.d_model, c.num_heads, c.nope_head_dim + c.rope_head_dim
        if c.q_rank is None:
            self.query = Linear((d,), (n, qk), "query", build, c.qkv_bias)
        else:
            self.query_down = Linear((d,), (c.q_rank,), "latent", build, c.qkv_bias)
            self.query_down_norm = c.q_norm.make(build)
            self.query_up = Linear((c.q_rank,), (n, qk), "query", build)
        self.kv_down = Linear((d,), (c.kv_rank + c.rope_head_dim,), "latent", build, c.qkv_bias)
        self.kv_norm = c.kv_norm.make(build)
        self.kv_up = Linear((c.kv_rank,), (n, c.nope_head_dim + c.value_head_dim), "key", build)
        self.out = Linear((n, c.value_head_dim), (d,), "attention_out", build, c.out_bias)
        self.position = c.position.make(build)

    def __call__(self, x: Hidden, context: Context) -> Hidden:
        (q, p), (latent, r) = self._queries(x, context), self._latents(x, context)
        k, v = jnp.split(self.kv_up(latent), [self.config.nope_head_dim], -1)
        r = jnp.broadcast_to(r[:, :, None], (*k.shape[:-1], r.shape[-1]))
        return self.out(self._see(jnp.concatenate([q, p], -1), jnp.concatenate([k, r], -1), v, context, context.positions))

    def step(self, x: Hidden, context: Context, cache: Any) -> tuple[Hidden, Any]:
        c = self.config
        at: Any = context.index
        q, p = self._queries(x, context)
        slots = jax.lax.dynamic_update_slice_in_dim(cache["latent"], jnp.concatenate(self._latents(x, context), -1), at, 1)
        to_key, to_value = jnp.split(self.kv_up.kernel.astype(x.dtype), [c.nope_head_dim], -1)
        seen = slots[:, :, None]
        # A slot is its own value too: cutting r off the sums is cheaper than copying the cache without it.
        sums = self._see(jnp.concatenate([jnp.einsum("btnh,rnh->btnr", q, to_key), p], -1), seen, seen, context, context.kv_positions)
        return self.out(jnp.einsum("btnr,rnh->btnh", sums[..., : c.kv_rank], to_value)), {"latent": slots}

    def _queries(self, x: Hidden, context: Context) -> tuple[Heads, Heads]:
        c = self.config
        q, p = jnp.split(self.query(x) if c.q_rank is None else self.query_up(self.query_down_norm(self.query_down(x))), [c.nope_head_dim], -1)
        return q, self.position(p, token_positions(context.positions, x))

    def _latents(self, x: Hidden, context: Context) -> tuple[Array, Array]:
        """What is remembered of tokens: `[B, T, kv_rank]` and `[B, T, rope_head_dim]`."""
        latent, r = jnp.split(self.kv_down(x), [self.config.kv_rank], -1)
        return self.kv_norm(latent), self.position(r[:, :, None], token_positions(context.positions, x))[:, :, 0]

    def _see(self, q: Heads, k: Heads, v: Heads, context: Context, kv_positions: Positions | None) -> Heads:
        c = self.config
        scale = (c.nope_head_dim + c.rope_head_dim) ** -0.5 if c.scale is None else c.scale
        return self._attend(q, k, v, both(c.mask.make(), context.mask), context.score, context.positions, kv_positions, scale)
