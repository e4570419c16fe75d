"""How a published checkpoint's tensors and a model's arrays hold the same numbers."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """Where parameters are: the path to them, and an index into their leading axes, those of layers and experts.

    `Place(("stack",)) / "final_norm"` goes on along the path, `place[3]` along the index.
    """

    path: tuple[str, ...]
    index: tuple[int, ...] = ()

    def __truediv__(self, name: str) -> "Place":
        return Place((*self.path, *name.split("/")), self.index)

    def __getitem__(self, n: int) -> "Place":
        return Place(self.path, (*self.index, n))


@dataclass(frozen=True)
class Tensor:
    """One tensor of theirs, and the arrays of ours that it holds, one behind the other.

    Ours are `[*lead, *in, *out]`, theirs `[*lead, out, in]`, as torch's Linear has it, with the outs of several parts joined.

    Attributes:
        name: theirs.
        parts: ours.
        inputs: how many axes `in` has; 0 for biases and scales, whose theirs is `[*lead, out]`.
        lead: how many axes `lead` has.
        transposed: whether theirs is `[*lead, out, in]`; otherwise it is `[*lead, in, out]` (tables of embeddings; GPT-2's products).
        groups: the parts are cut into so many pieces along their outs, which lie in turn: first pieces of all parts, second pieces, ... The number of heads
            where a head's query, key and value lie together.
        order: theirs of the first part's outs for each of ours, within a piece of so many; () for the same order.
        ones: axes of length 1 before all others of theirs.
    """

    name: str
    parts: tuple[Place, ...]
    _: KW_ONLY
    inputs: int = 0
    lead: int = 0
    transposed: bool = True
    groups: int = 1
    order: tuple[int, ...] = ()
    ones: int = 0

    def shape(self, ours: Sequence[Shape]) -> Shape:
        """Theirs, given those of the parts."""
        lead, ins, _ = self._sizes(ours[0])
        out = sum(math.prod(s[self.lead + self.inputs :]) for s in ours)
        flat = (out,) if not self.inputs else (out, math.prod(ins)) if self.transposed else (math.prod(ins), out)
        return (*(1,) * self.ones, *lead, *flat)

    def split(self, theirs: np.ndarray, ours: Sequence[Shape]) -> list[np.ndarray]:
        """The parts, in their shapes."""
        lead, ins, _ = self._sizes(ours[0])
        outs = [math.prod(s[self.lead + self.inputs :]) // self.groups for s in ours]
        if self.inputs and not self.transposed:
            theirs = theirs.reshape(*lead, math.prod(ins), -1).swapaxes(-1, -2)
        pieces = np.split(theirs.reshape(*lead, self.groups, sum(outs), math.prod(ins)), np.cumsum(outs)[:-1], axis=-2)
        if self.order:
            pieces[0] = _reordered(pieces[0], self.order)
        return [np.moveaxis(piece.reshape(*lead, -1, math.prod(ins)), -2, -1).reshape(shape) for piece, shape in zip(pieces, ours)]

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Theirs, made of the parts."""
        ours = [part.shape for part in parts]
        lead, ins, _ = self._sizes(ours[0])
        pieces = [np.moveaxis(part.reshape(*lead, math.prod(ins), -1), -1, -2).reshape(*lead, self.groups, -1, math.prod(ins)) for part in parts]
        if self.order:
            pieces[0] = _reordered(pieces[0], tuple(int(n) for n in np.argsort(self.order)))
        theirs = np.concatenate(pieces, -2).reshape(*lead, -1, math.prod(ins))
        if self.inputs and not self.transposed:
            theirs = theirs.swapaxes(-1, -2)
        return np.ascontiguousarray(theirs.reshape(self.shape(ours)))

    def _sizes(self, ours: Shape) -> tuple[Shape, Shape, Shape]:
        at = self.lead + self.inputs
        return ours[: self.lead], ours[self.lead : at], ours[at:]


def _reordered(a: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    *lead, out, ins = a.shape
    return a.reshape(*lead, out // len(order), len(order), ins)[..., order, :].reshape(a.shape)


def linear(name: str, *parts: Place, inputs: int = 1, transposed: bool = True, groups: int = 1, order: tuple[int, ...] = ()) -> Iterator[Tensor]:
    """The weight and the bias of products; a model without the bias has no use for its line."""
    yield Tensor(f"{name}.weight", tuple(p / "kernel" for p in parts), inputs=inputs, transposed=transposed, groups=groups, order=order)
    yield Tensor(f"{name}.bias", tuple(p / "bias" for p in parts), groups=groups, order=order)


def norm(name: str, part: Place) -> Iterator[Tensor]:
    """The scale and the bias of a norm."""
    yield Tensor(f"{name}.weight", (part / "scale",))
    yield Tensor(f"{name}.bias", (part / "bias",))


def table(name: str, part: Place) -> Tensor:
    """A table of embeddings, `[rows, D]` on both sides."""
    return Tensor(name, (part,), inputs=1, transposed=False)
