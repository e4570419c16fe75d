"""Attention with relative positions in its keys and values."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pallas_kernels import attention, lookup, masks, scores
from pallas_kernels.flash.functions import Index
from pallas_kernels.flash.masks import Mask
from pallas_kernels.flash.scores import Score as KernelScore
from transformer_jax.layers.base import Build, check_positive, token_positions
from transformer_jax.layers.masks import both
from transformer_jax.layers.mixers.attention import Attention, AttentionModule
from transformer_jax.precision import wide
from transformer_jax.typing import Heads


@dataclass(frozen=True)
class ShawAttention(Attention):
    """Attention with s = scale * q.(k + a[d]) and o = sum of p (v + w[d]), d = clip(k's position - q's, -c, c) (Shaw et al., arXiv:1803.02155, section 3.2).

    The tables a and w, `[2c + 1, H]`, are shared by the heads (section 3.3). No array over queries and keys is held: q.a is computed for all distances,
    `[B, N, T, 2c + 1]`, and looked up within the tiles; for the values see `relative_values`.

    Attributes:
        max_distance: c; all distances beyond share a vector.
        values: whether the values have relative positions too (without them: section 4.3).
    """

    _: KW_ONLY
    max_distance: int
    values: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "max_distance")
        if self.sinks and self.values:
            why = "relative values merge several calls of attention, each of which would count the sinks; set values=False"
            raise ValueError(f"ShawAttention.sinks: expected False, received True: {why}")

    def make(self, build: Build) -> nn.Module:
        self.width(build)
        return ShawModule(self, build)


class ShawModule(AttentionModule):
    def setup(self) -> None:
        super().setup()
        c, build = self.config, self.build
        shape = 2 * c.max_distance + 1, c.width(build)
        init, dtype = build.initialization.kernel("position", *shape, build.depth), jnp.dtype(build.precision.params)
        self.relative_key = self.param("relative_key", init, shape, dtype)
        if c.values:
            self.relative_value = self.param("relative_value", init, shape, dtype)

    def _scores(self, q: Heads, shared: tuple[KernelScore, ...]) -> tuple[KernelScore, ...]:
        scale = q.shape[-1] ** -0.5 if self.config.scale is None else self.config.scale
        relative = scale * jnp.einsum("btnh,fh->bntf", q, self.relative_key.astype(q.dtype), preferred_element_type=wide(q.dtype))
        return (scores.from_function(by_distance, relative=(relative, "BNT")), *super()._scores(q, shared))

    def _outputs(self, q: Heads, k: Heads, v: Heads, how: dict[str, Any]) -> Heads:
        return relative_values(q, k, v, self.relative_value, **how) if self.config.values else super()._outputs(q, k, v, how)


def by_distance(s: Any, i: Index, relative: Any) -> Any:
    return s + lookup(relative, i.k - i.q + relative.shape[-1] // 2)


def relative_values(q: jax.Array, k: jax.Array, v: jax.Array, table: jax.Array, *, mask: Mask | None, **how: Any) -> jax.Array:
    """Sum of p (v + table[clip(k's position - q's, -c, c) + c]) over the keys, by three calls of attention, merged by their lse.

    The keys at least c before the query all have v + table[0] as value, those at least c after it v + table[2c]. Between them, different distances mean
    different positions modulo 2c - 1: with that number, one-hot, beside v, attention also gives the sum of p at each distance.

    Args:
        q: `[B, T, N, H]`.
        k: `[B, S, K, H]`.
        v: `[B, S, K, H]`.
        table: `[2c + 1, H]`.
        mask, how: the other arguments of `attention`; positions are among them, sinks are not.

    Returns:
        `[B, T, N, H]` in q's dtype.
    """
    table, c = table.astype(v.dtype), table.shape[0] // 2
    period, near = 2 * c - 1, masks.sliding_window(c - 1, c - 1)
    residues = jax.nn.one_hot(token_positions(how["kv_positions"], k) % period, period, dtype=v.dtype)[:, :, None]
    marked = jnp.concatenate([v, jnp.broadcast_to(residues, (*v.shape[:-1], period))], -1)
    parts = (masks.causal() & ~near, v + table[0]), (near, marked), (~masks.causal() & ~near, v + table[-1])
    (before, within, after), lse = zip(*(attention(q, k, value, mask=both(mask, part), return_lse=True, **how) for part, value in parts))
    within, sums = jnp.split(within, [v.shape[-1]], -1)
    wanted = (token_positions(how["q_positions"], q)[:, :, None, None] + jnp.arange(1 - c, c)) % period
    within = within + jnp.einsum("btnf,fh->btnh", jnp.take_along_axis(sums, wanted, -1), table[1:-1])
    # A part with nothing allowed has lse -inf, a row with nothing allowed three of them.
    shares = jax.nn.softmax(jnp.maximum(jnp.stack(lse), jnp.finfo(lse[0].dtype).min), 0)
    return jnp.einsum("rbnt,rbtnh->btnh", shares, jnp.stack([before, within, after]).astype(shares.dtype)).astype(q.dtype)
