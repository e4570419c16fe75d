"""A mixture of experts: many MLPs, a few of which work on each token."""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.layers.base import Build, Context, Mlp, MlpModule, check_not_negative, check_positive
from transformer_jax.layers.mlps.base import FeedForward, role_of
from transformer_jax.layers.mlps.no_mlp import NoMlp
from transformer_jax.layers.mlps.routers import Router, Routing, SoftmaxRouter
from transformer_jax.ops.dispatch import by_expert, move, within_capacity
from transformer_jax.ops.grouped import grouped_product
from transformer_jax.ops.routing import expert_load, load_balance_loss, router_z_loss
from transformer_jax.typing import Hidden

Product = Callable[[jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True)
class Experts(Mlp):
    """sum over a token's k experts of weight * expert(x), + shared(x) (Shazeer et al., arXiv:1701.06538, section 2).

    Mixtral's is `Experts(Gated(d_ff), num_experts=8)`, and DeepSeek-V3's
    `Experts(Gated(2048), num_experts=256, router=SigmoidRouter(8, groups=8, top_groups=4, scale=2.5), shared=Gated(2048))`.

    The parameters are those of `mlp` with a leading axis of experts, `mlp/up/kernel` `[E, D, F]` and so on, the router's and those of `shared`. Padding, where
    a call has `valid`, goes to no expert and counts nowhere.

    Without `capacity` no token is dropped: rows are sorted by expert, and each is multiplied with its own expert's matrices. With it each expert takes at most
    ceil(capacity * tokens * k / num_experts) tokens of a call, in the order in which they are in the batch, and for the others its output is 0 (Switch,
    arXiv:2101.03961, section 2.2). What becomes of a token then depends on the other sequences of its batch; a `step` of generating drops none.

    Collections that it sows, if they are mutable: "losses" gets `load_balance` and `router_z`, weighted, where their weights are above 0; "metrics" gets
    `expert_load` `[E]`, each expert's share of the choices, before any is dropped.

    Attributes:
        mlp: of one expert: `Gated`, `Dense`, or a `FeedForward` of one's own.
        num_experts: E.
        router: which experts, and with what weights.
        shared: an MLP that works on every token. Several shared experts are one that is as wide as all of them.
        capacity: of an expert, as a multiple of its even share; None for no limit.
        load_balance_loss: weight of the load-balance loss, 1 where the use is even: see `ops.routing`.
        z_loss: weight of the router's z-loss.
    """

    mlp: FeedForward
    _: KW_ONLY
    num_experts: int
    router: Router = SoftmaxRouter(2)
    shared: Mlp = NoMlp()
    capacity: float | None = None
    load_balance_loss: float = 0.0
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "num_experts", "capacity")
        check_not_negative(self, "load_balance_loss", "z_loss")
        self.router.check(self.num_experts)

    def make(self, build: Build) -> nn.Module:
        return ExpertsModule(self, build)


class ExpertsModule(MlpModule):
    def setup(self) -> None:
        c, build = self.config, self.build
        self.router = c.router.make(build, c.num_experts)
        self.mlp = StackedMlp(c.mlp, c.num_experts, build)
        self.shared = c.shared.make(build)

    def __call__(self, x: Hidden, context: Context) -> Hidden:
        return self._mixed(x, context, self.config.capacity) + self.shared(x, context)

    def step(self, x: Hidden, context: Context, cache: Any) -> tuple[Hidden, Any]:
        return self._mixed(x, context, None) + self.shared(x, context), cache

    def _mixed(self, x: Hidden, context: Context, capacity: float | None) -> Hidden:
        E, D = self.config.num_experts, x.shape[-1]
        rows = x.reshape(-1, D)
        valid = None if context.valid is None else context.valid.reshape(-1)
        routing = self.router(rows)
        M, k = routing.experts.shape
        experts = (routing.experts if valid is None else jnp.where(valid[:, None], routing.experts, E)).reshape(-1)
        order = by_expert(experts, E)
        copies = jnp.broadcast_to(rows[:, None], (M, k, D)).reshape(-1, D)
        if capacity is None:
            reference = self.build.backend == "reference"
            y = self.mlp(move(copies, order.copies, order.places), lambda x, kernel: grouped_product(x, kernel, order.sizes, reference=reference))
            y = move(y, order.places, order.copies)
        else:
            room = min(M, math.ceil(capacity * M * k / E))
            taken, mine = within_capacity(experts, order, room)
            y = self.mlp(move(copies, taken, mine).reshape(E, room, D), lambda x, kernel: x @ kernel.astype(x.dtype))
            y = move(y.reshape(-1, D), mine, taken)
        self._sow(routing, order.sizes, valid)
        return (routing.weights[:, :, None] * y.reshape(M, k, D)).sum(1).astype(x.dtype).reshape(x.shape)

    def _sow(self, routing: Routing, sizes: jax.Array, valid: jax.Array | None) -> None:
        if self.is_initializing():
            return
        c, load = self.config, expert_load(sizes, routing.weights.dtype)
        self.sow("metrics", "expert_load", load)
        if c.load_balance_loss:
            self.sow("losses", "load_balance", c.load_balance_loss * load_balance_loss(routing.probabilities, load, valid))
        if c.z_loss:
            self.sow("losses", "router_z", c.z_loss * router_z_loss(routing.logits, valid))


class StackedMlp(nn.Module):
    """An MLP as many times as there are experts, with kernels `[E, K, N]` and biases `[E, N]`."""

    config: FeedForward
    num_experts: int
    build: Build

    @nn.compact
    def __call__(self, x: jax.Array, product: Product) -> jax.Array:
        """Of x `[..., D]`; `product(x, kernel)` multiplies each row with its own expert's matrix."""
        c, build = self.config, self.build

        def linear(name: str, x: jax.Array, outputs: int) -> Any:
            return StackedLinear(self.num_experts, outputs, role_of(name), build, c.bias, name=name)(x, product)

        return c.compute(x, linear, nn.Dropout(c.dropout, deterministic=not build.training))


class StackedLinear(nn.Module):
    """A linear layer as many times as there are experts."""

    num_experts: int
    outputs: int
    role: str
    build: Build
    bias: bool

    @nn.compact
    def __call__(self, x: jax.Array, product: Product) -> jax.Array:
        E, inputs, dtype = self.num_experts, x.shape[-1], jnp.dtype(self.build.precision.params)
        init = self.build.initialization.kernel(self.role, inputs, self.outputs, self.build.depth)
        y = product(x, self.param("kernel", init, (E, inputs, self.outputs), dtype))
        if not self.bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (E, self.outputs), dtype)
        # Each row's own bias, as a product with 1.
        return y + product(jnp.ones((*x.shape[:-1], 1), x.dtype), bias[:, None])
