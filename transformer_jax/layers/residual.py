"""A residual sublayer, and branches in parallel."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import flax.linen as nn

from transformer_jax.config import Config
from transformer_jax.layers.base import Build, Context, Layer, check_rate
from transformer_jax.layers.norm import NoNorm, Norm
from transformer_jax.typing import Hidden


@dataclass(frozen=True)
class Residual(Config):
    """after(x + drop(post(layer(pre(x))))).

    `pre` alone is GPT's order, `after` that of the 2017 paper and BERT, `post` OLMo 2's, `pre` and `post` Gemma 2's.

    Attributes:
        layer: a mixer, an MLP, or several in parallel.
        pre, post, after: norms.
        dropout: rate, of what is added.
    """

    layer: Layer
    _: KW_ONLY
    pre: Norm = NoNorm()
    post: Norm = NoNorm()
    after: Norm = NoNorm()
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rate(self, "dropout")

    def make(self, build: Build) -> nn.Module:
        return ResidualModule(self, build)


class ResidualModule(nn.Module):
    config: Residual
    build: Build

    def setup(self) -> None:
        c = self.config
        self.layer = c.layer.make(self.build)
        self.pre, self.post, self.after = (norm.make(self.build) for norm in (c.pre, c.post, c.after))
        self.drop = nn.Dropout(c.dropout, deterministic=not self.build.training)

    def __call__(self, x: Hidden, context: Context, cache: Any = None) -> tuple[Hidden, Any]:
        """The residual stream after the sublayer, and the layer's cache if one is given."""
        y = self.pre(x)
        if cache is None:
            y = self.layer(y, context)
        else:
            y, cache = _step(self.layer, y, context, cache)
        return self.after(x + self.drop(self.post(y))), cache


@dataclass(frozen=True)
class Branch(Layer):
    """layer(pre(x)): a branch of `Parallel` with a norm of its own (GPT-NeoX)."""

    layer: Layer
    _: KW_ONLY
    pre: Norm = NoNorm()

    def make(self, build: Build) -> nn.Module:
        return BranchModule(self, build)

    def init_cache(self, build: Build, batch: int, length: int, memory_length: int = 0) -> Any:
        return self.layer.init_cache(build, batch, length, memory_length)


class BranchModule(nn.Module):
    config: Branch
    build: Build

    def setup(self) -> None:
        self.layer, self.pre = self.config.layer.make(self.build), self.config.pre.make(self.build)

    def __call__(self, x: Hidden, context: Context) -> Hidden:
        return self.layer(self.pre(x), context)

    def step(self, x: Hidden, context: Context, cache: Any) -> tuple[Hidden, Any]:
        return _step(self.layer, self.pre(x), context, cache)


@dataclass(frozen=True)
class Parallel(Layer):
    """The sum of branches that all read x (GPT-J; Falcon). A branch with a norm of its own is a `Branch`."""

    branches: tuple[Layer, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.branches:
            raise ValueError("Parallel.branches: expected at least one, received none")

    def make(self, build: Build) -> nn.Module:
        return ParallelModule(self, build)

    def init_cache(self, build: Build, batch: int, length: int, memory_length: int = 0) -> Any:
        return tuple(branch.init_cache(build, batch, length, memory_length) for branch in self.branches)


class ParallelModule(nn.Module):
    config: Parallel
    build: Build

    def setup(self) -> None:
        self.branches = [branch.make(self.build) for branch in self.config.branches]

    def __call__(self, x: Hidden, context: Context) -> Hidden:
        return sum((branch(x, context) for branch in self.branches[1:]), self.branches[0](x, context))

    def step(self, x: Hidden, context: Context, cache: Any) -> tuple[Hidden, Any]:
        outputs = [_step(branch, x, context, mine) for branch, mine in zip(self.branches, cache)]
        return sum((y for y, _ in outputs[1:]), outputs[0][0]), tuple(mine for _, mine in outputs)


def _step(layer: nn.Module, x: Hidden, context: Context, cache: Any) -> tuple[Hidden, Any]:
    if not hasattr(layer, "step"):
        raise NotImplementedError(f"{type(layer).__name__} has no step(x, context, cache), which generating needs; see MixerModule")
    y, cache = layer.step(x, context, cache)
    return y, cache
