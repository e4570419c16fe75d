"""The base of position schemes, and none at all."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import flax.linen as nn
import jax

from transformer_jax.config import Config
from transformer_jax.layers.base import Build
from transformer_jax.typing import Positions


class Position(Config):
    """Open base of position schemes.

    Attributes:
        acts_on: "embeddings" `[B, T, D]`, "heads" (queries and keys, `[B, T, N, H]`), or "either".
    """

    acts_on: ClassVar[Literal["embeddings", "heads", "either"]] = "either"

    def make(self, build: Build) -> nn.Module:
        """A linen module with `__call__(x, positions) -> y`; positions are `[B, T]` or `[1, T]`."""
        raise NotImplementedError(f"{type(self).__name__} must define make(build)")


@dataclass(frozen=True)
class NoPosition(Position):
    """y = x."""

    def make(self, build: Build) -> nn.Module:
        return Unchanged()


class Unchanged(nn.Module):
    def __call__(self, x: jax.Array, positions: Positions) -> jax.Array:
        return x


def check_acts_on(config: Config, position: Position, wanted: str) -> None:
    """Refuses a scheme in a place where it cannot work."""
    if position.acts_on not in (wanted, "either"):
        other = {"embeddings": "an attention's `position`", "heads": "the embedding's `position`"}[wanted]
        raise TypeError(f"{type(config).__name__}.position: expected a scheme that acts on {wanted}, received {position!r}; it belongs to {other}")
