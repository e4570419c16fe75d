"""Self-attention, and what it shares with attention to a memory."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pallas_kernels import attention
from pallas_kernels.flash.backends.reference import probabilities
from pallas_kernels.flash.masks import Mask as KernelMask
from pallas_kernels.flash.request import make_request
from pallas_kernels.flash.scores import Score as KernelScore
from transformer_jax.layers.base import Build, Context, Layer, Linear, Mixer, MixerModule, attention_dropout, check_positive, check_rate, token_positions
from transformer_jax.layers.masks import Mask, both
from transformer_jax.layers.norm import NoNorm, Norm
from transformer_jax.layers.positions.base import NoPosition, Position, check_acts_on
from transformer_jax.layers.scores.base import Score
from transformer_jax.typing import Heads, Hidden, Positions


@dataclass(frozen=True)
class MultiHead(Layer):
    """Base of layers of attention: projections to heads and back.

    Attributes:
        num_heads: of queries.
        num_kv_heads: of keys and values; `num_heads` unless given. 1 is multi-query (arXiv:1911.02150), in between grouped-query (arXiv:2305.13245).
        head_dim: d_model / num_heads unless given.
        score: applied in order, after the stack's where there are any.
        qk_norm: of each head's queries and of its keys (arXiv:2302.05442, section 2).
        qkv_bias, out_bias: whether the projections have biases.
        scale: of q.k; head_dim^-0.5 unless given.
        dropout: rate, of the probabilities.
    """

    num_heads: int
    _: KW_ONLY
    num_kv_heads: int | None = None
    head_dim: int | None = None
    score: tuple[Score, ...] = ()
    qk_norm: Norm = NoNorm()
    qkv_bias: bool = False
    out_bias: bool = False
    scale: float | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "num_heads", "num_kv_heads", "head_dim")
        check_rate(self, "dropout")
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


class MultiHeadModule(MixerModule):
    """Base of the modules: projections, and attention between what they made."""

    def setup(self) -> None:
        c, build = self.config, self.build
        d, h = build.d_model, c.width(build)
        self.query = Linear((d,), (c.num_heads, h), "query", build, c.qkv_bias)
        self.key = Linear((d,), (c.kv_heads, h), "key", build, c.qkv_bias)
        self.value = Linear((d,), (c.kv_heads, h), "value", build, c.qkv_bias)
        self.out = Linear((c.num_heads, h), (d,), "attention_out", build, c.out_bias)
        self.query_norm, self.key_norm = c.qk_norm.make(build), c.qk_norm.make(build)
        self.scores = [score.make(build, c.num_heads) for score in c.score]

    def _attend(
        self, q: Heads, k: Heads, v: Heads, mask: KernelMask | None, score: tuple[KernelScore, ...], q_positions: Any, kv_positions: Any
    ) -> Hidden:  # fmt: skip
        c, build = self.config, self.build
        how = {
            "mask": mask,
            "score": self._scores(q, score),
            "scale": c.scale,
            "dropout": attention_dropout(self, c.dropout, build.training),
            "q_positions": q_positions,
            "kv_positions": kv_positions,
        }
        if build.backend == "reference" and self.is_mutable_collection("intermediates") and not self.is_initializing():
            self.sow("intermediates", "probabilities", probabilities(make_request(q, k, v, sinks=None, **how))[0])
        return self.out(self._outputs(q, k, v, {**how, "backend": build.backend}))

    def _scores(self, q: Heads, shared: tuple[KernelScore, ...]) -> tuple[KernelScore, ...]:
        return (*shared, *(score() for score in self.scores))

    def _outputs(self, q: Heads, k: Heads, v: Heads, how: dict[str, Any]) -> Heads:
        return attention(q, k, v, **how)


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
        q = self.position(self.query_norm(self.query(x)), positions)
        k = self.position(self.key_norm(self.key(x)), positions)
        return q, k, self.value(x)

    def _see(self, q: Heads, k: Heads, v: Heads, context: Context, kv_positions: Positions | None) -> Hidden:
        mask = both(self.config.mask.make(), context.mask)
        return self._attend(q, k, v, mask, context.score, context.positions, kv_positions)
