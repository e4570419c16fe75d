"""Masks as configs: `Causal() & SlidingWindow(4096)`."""

from dataclasses import KW_ONLY, dataclass

from pallas_kernels import masks
from pallas_kernels.flash.masks import Mask as KernelMask
from transformer_jax.config import Config


class Mask(Config):
    """Open base of masks. `&`, `|` and `~` combine them."""

    def make(self) -> KernelMask | None:
        """One of `pallas_kernels.masks`, or None where everything is allowed."""
        raise NotImplementedError(f"{type(self).__name__} must define make()")

    def __and__(self, other: "Mask") -> "Mask":
        return And(self, b=other)

    def __or__(self, other: "Mask") -> "Mask":
        return Or(self, b=other)

    def __invert__(self) -> "Mask":
        return Not(self)


@dataclass(frozen=True)
class NoMask(Mask):
    """Everything is allowed."""

    def make(self) -> KernelMask | None:
        return None


@dataclass(frozen=True)
class Causal(Mask):
    """k <= q."""

    def make(self) -> KernelMask | None:
        return masks.causal()


@dataclass(frozen=True)
class SlidingWindow(Mask):
    """q - left <= k <= q + right."""

    left: int
    _: KW_ONLY
    right: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.make()

    def make(self) -> KernelMask | None:
        return masks.sliding_window(self.left, self.right)


@dataclass(frozen=True)
class And(Mask):
    """Allowed by both."""

    a: Mask
    _: KW_ONLY
    b: Mask

    def make(self) -> KernelMask | None:
        return both(self.a.make(), self.b.make())


@dataclass(frozen=True)
class Or(Mask):
    """Allowed by either."""

    a: Mask
    _: KW_ONLY
    b: Mask

    def make(self) -> KernelMask | None:
        a, b = self.a.make(), self.b.make()
        return None if a is None or b is None else a | b


@dataclass(frozen=True)
class Not(Mask):
    """Not allowed by the other."""

    a: Mask

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.a.make() is None:
            raise ValueError("Not.a: expected a mask that rules something out, received one that allows everything: nothing would be left")

    def make(self) -> KernelMask | None:
        mask = self.a.make()
        return None if mask is None else ~mask


def both(a: KernelMask | None, b: KernelMask | None) -> KernelMask | None:
    """Allowed by both, where None allows everything."""
    if a is None or b is None:
        return a if b is None else b
    return a & b
