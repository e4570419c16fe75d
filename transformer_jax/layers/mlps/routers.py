"""Routers: which experts work on a token, and with what weights."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.config import Config
from transformer_jax.layers.base import Build, check_positive
from transformer_jax.ops.routing import select_experts
from transformer_jax.precision import wide


class Routing(NamedTuple):
    """What a router says of M tokens and E experts; floats are float32 (float64).

    Attributes:
        logits: `[M, E]`, for the z-loss.
        probabilities: `[M, E]`, rows sum to 1, for the load-balance loss.
        weights: `[M, k]`, of the experts' outputs.
        experts: `[M, k]`, integers, no expert twice in a row.
    """

    logits: jax.Array
    probabilities: jax.Array
    weights: jax.Array
    experts: jax.Array


class Router(Config):
    """Open base of routers."""

    def make(self, build: Build, num_experts: int) -> nn.Module:
        """A linen module with `__call__(x) -> Routing`, of rows x `[M, D]`."""
        raise NotImplementedError(f"{type(self).__name__} must define make(build, num_experts)")

    def check(self, num_experts: int) -> None:
        """Refuses what cannot work with so many experts."""


@dataclass(frozen=True)
class TopKRouter(Router):
    """Base of the routers with a score for each expert, made of x.kernel + bias in float32 (float64), that take the k experts of the largest scores.

    Its parameters are `kernel` `[D, E]` and, where `bias`, `bias` `[E]`.

    Attributes:
        top_k: experts to a token.
        renormalise: whether a token's weights are divided by their sum. Of one expert to a token that leaves 1, which tells the router nothing.
        bias: whether the logits have a bias.
        groups: experts are in so many groups that follow one another, and
        top_groups: a token's experts are of its best so many groups.
        scale: of the weights.
        correction: whether a further parameter, `correction` `[E]`, is added to the scores that are compared, and not to the weights. No gradient reaches it.
            DeepSeek-V3 (section 2.1.2) changes it after each step by a fixed small amount, 0.001: down for experts whose load was above the mean, up for
            the others. `expert_load` among the metrics says what that needs.
    """

    top_k: int
    _: KW_ONLY
    renormalise: bool = True
    bias: bool = False
    groups: int = 1
    top_groups: int = 1
    scale: float = 1.0
    correction: bool = False
    # A group is as good as the sum of its so many best experts.
    group_best: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "top_k", "groups", "top_groups", "scale")
        if self.top_groups > self.groups:
            raise ValueError(f"{type(self).__name__}.top_groups: expected at most groups = {self.groups}, received {self.top_groups}")

    def check(self, num_experts: int) -> None:
        name = type(self).__name__
        if num_experts % self.groups:
            raise ValueError(f"{name}.groups: expected a divisor of num_experts = {num_experts}, received {self.groups}")
        within = num_experts // self.groups * self.top_groups
        if self.top_k > within:
            those = f"num_experts = {within}" if self.groups == self.top_groups else f"{within}, the experts of top_groups = {self.top_groups} groups"
            way_out = "" if self.groups == self.top_groups else "; raise top_groups"
            raise ValueError(f"{name}.top_k: expected at most {those}, received {self.top_k}{way_out}")

    def scores(self, logits: jax.Array) -> jax.Array:
        """Of logits `[M, E]`: what is compared, and what weights are made of, at least 0."""
        raise NotImplementedError(f"{type(self).__name__} must define scores(logits)")

    def make(self, build: Build, num_experts: int) -> nn.Module:
        self.check(num_experts)
        return TopKRouterModule(self, build, num_experts)


class TopKRouterModule(nn.Module):
    config: Any
    build: Build
    num_experts: int

    @nn.compact
    def __call__(self, x: jax.Array) -> Routing:
        c, build, E = self.config, self.build, self.num_experts
        exact, dtype, zeros = wide(x.dtype), jnp.dtype(build.precision.params), nn.initializers.zeros
        kernel = self.param("kernel", build.initialization.kernel("router", x.shape[-1], E, build.depth), (x.shape[-1], E), dtype)
        # Of which experts a token goes to, a rounded logit may decide.
        logits = jnp.matmul(x.astype(exact), kernel.astype(exact), precision="highest")
        if c.bias:
            logits = logits + self.param("bias", zeros, (E,), dtype).astype(exact)
        choice = scores = c.scores(logits)
        if c.correction:
            choice = scores + self.param("correction", zeros, (E,), dtype).astype(exact)
        weights, experts = select_experts(
            choice, scores, c.top_k, groups=c.groups, top_groups=c.top_groups, group_best=c.group_best, renormalise=c.renormalise, scale=c.scale
        )  # fmt: skip
        return Routing(logits, scores / scores.sum(-1, keepdims=True), weights, experts)


@dataclass(frozen=True)
class SoftmaxRouter(TopKRouter):
    """Scores are softmax(logits) (Shazeer et al., arXiv:1701.06538; Switch, arXiv:2101.03961, section 2.1). Fields: `TopKRouter`'s.

    Renormalised they are the softmax of the chosen logits alone: Mixtral, and with `bias` gpt-oss. DeepSeek-V2's device-limited routing is `groups` and
    `top_groups` with `renormalise=False`; a group is as good as its best expert.
    """

    def scores(self, logits: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits)


@dataclass(frozen=True)
class SigmoidRouter(TopKRouter):
    """Scores are sigmoid(logits) (DeepSeek-V3, arXiv:2412.19437, section 2.1.2); a group is as good as its two best experts together.

    Fields: `TopKRouter`'s.
    """

    _: KW_ONLY
    correction: bool = True
    group_best: ClassVar[int] = 2

    def scores(self, logits: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(logits)
