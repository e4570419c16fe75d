"""The base of scores, and of those that own parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from pallas_kernels import scores
from pallas_kernels.flash.scores import Score as KernelScore
from transformer_jax.config import Config
from transformer_jax.layers.base import Build


class Score(Config):
    """Open base of scores."""

    def make(self, build: Build, num_heads: int) -> nn.Module:
        """A linen module with `__call__() -> score`, one of `pallas_kernels.scores`."""
        raise NotImplementedError(f"{type(self).__name__} must define make(build, num_heads)")


@dataclass(frozen=True)
class Parameter:
    """A learned array of a score.

    Attributes:
        shape: of the whole array.
        axes: which of "BNTS" its leading axes are; the rest are features.
        init: `init(key, shape, dtype)`.
    """

    shape: tuple[int, ...]
    axes: str
    init: Callable[..., jax.Array] = nn.initializers.zeros


class LearnedScore(Score):
    """A score that owns parameters: a dataclass that says which, and the function that uses them.

        def decay(s, i, slope):
            return s + slope * (i.k - i.q)

        @dataclass(frozen=True)
        class Decay(LearnedScore):
            function = decay

            def parameters(self, num_heads):
                return {"slope": Parameter((num_heads,), "N")}
    """

    function: ClassVar[Callable[..., Any]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "function" in vars(cls) and not isinstance(vars(cls)["function"], staticmethod):
            cls.function = staticmethod(vars(cls)["function"])

    def parameters(self, num_heads: int) -> dict[str, Parameter]:
        """The arrays by the names of the function's arguments."""
        raise NotImplementedError(f"{type(self).__name__} must define parameters(num_heads)")

    def score(self, **arrays: tuple[jax.Array, str]) -> KernelScore:
        """The score, given each array with its axes."""
        return scores.from_function(type(self).function, **arrays)

    def make(self, build: Build, num_heads: int) -> nn.Module:
        return LearnedScoreModule(self, build, num_heads)


class LearnedScoreModule(nn.Module):
    config: LearnedScore
    build: Build
    num_heads: int

    @nn.compact
    def __call__(self) -> KernelScore:
        dtype = jnp.dtype(self.build.precision.params)
        wanted = self.config.parameters(self.num_heads)
        return self.config.score(**{name: (self.param(name, p.init, p.shape, dtype), p.axes) for name, p in wanted.items()})


class FixedScoreModule(nn.Module):
    """A score without parameters."""

    score: Callable[[], KernelScore]

    def __call__(self) -> KernelScore:
        return self.score()
