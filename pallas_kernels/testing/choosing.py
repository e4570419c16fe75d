"""Who makes the choices of a random case: a seed here, hypothesis in `strategies`. The cases are written once for both."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from pallas_kernels.testing.calls import Sizes

Option = TypeVar("Option")


class Choose(Protocol):
    """`of` picks what gives a program its form (sizes, kinds), the simplest option first; `rng` draws the numbers inside arrays."""

    rng: np.random.Generator

    def of(self, options: Sequence[Option]) -> Option: ...


class Seeded:
    """Chooses by a seed. The first real choice goes through its options as seeds count up, so that 20 seeds see each of 12 kinds."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self._turn: int | None = seed

    def of(self, options: Sequence[Option]) -> Option:
        if len(options) == 1:
            return options[0]
        which = int(self.rng.integers(len(options))) if self._turn is None else self._turn % len(options)
        self._turn = None
        return options[which]


@dataclass(frozen=True)
class Space:
    """The sizes that cases take. Of each kind the first is the simplest, and the others add one difficulty.

    Args:
        lengths: pairs of T and S: the first within one tile of the kernel, the others over several.
        heads: pairs of N and K: the first with N = K, the others with groups of query heads.
        head_dims: pairs of H and Hv: the first with H = Hv, the others not.
        leads: leading dimensions.
    """

    lengths: Sequence[tuple[int, int]] = ((5, 11), (149, 131))
    heads: Sequence[tuple[int, int]] = ((3, 3), (4, 2), (3, 1))
    head_dims: Sequence[tuple[int, int]] = ((7, 7), (13, 5), (3, 11))
    leads: Sequence[tuple[int, ...]] = ((2,),)

    @property
    def simple(self) -> "Space":
        """One tile, no groups, H = Hv."""
        return replace(self, lengths=self.lengths[:1], heads=self.heads[:1], head_dims=self.head_dims[:1])

    @property
    def tiled(self) -> "Space":
        """Several tiles, one kind of groups."""
        return replace(self.usual, lengths=_beyond_first(self.lengths))

    @property
    def grouped(self) -> "Space":
        """Query heads in groups."""
        return replace(self.simple, heads=_beyond_first(self.heads))

    @property
    def uneven(self) -> "Space":
        """H other than Hv."""
        return replace(self.simple, head_dims=_beyond_first(self.head_dims))

    @property
    def usual(self) -> "Space":
        """One tile or several, one kind of groups."""
        return replace(self.simple, lengths=self.lengths, heads=self.grouped.heads[:1])

    def led_by(self, *leads: tuple[int, ...]) -> "Space":
        """The same with other leading dimensions."""
        return replace(self, leads=leads)

    def choose(self, choose: Choose) -> Sizes:
        """Some of these sizes."""
        lead, (T, S), (N, K), (H, Hv) = (choose.of(options) for options in (self.leads, self.lengths, self.heads, self.head_dims))
        return Sizes(lead, T, S, N, K, H, Hv)


def _beyond_first(options: Sequence[Any]) -> Sequence[Any]:
    return options[1:] or options
