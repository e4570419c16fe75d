"""All that is held out, in batches of one shape, and sums over them."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import grain
import jax
import numpy as np


class Sums(NamedTuple):
    """Sums over labels.

    Attributes:
        nll: nats.
        correct: labels that were the likeliest.
        weight: labels that count.
    """

    nll: float
    correct: float
    weight: float

    @property
    def loss(self) -> float:
        """Nats per label."""
        return self.nll / self.weight

    @property
    def accuracy(self) -> float:
        """The share of labels that were the likeliest."""
        return self.correct / self.weight


class Counted(Protocol):
    """Sums of a batch, as a loss or an objective gives them: see `CrossEntropy`."""

    @property
    def nll(self) -> Any: ...
    @property
    def correct(self) -> Any: ...
    @property
    def weight(self) -> Any: ...


def in_order(examples: grain.MapDataset, batch: int) -> Iterator[Any]:
    """All examples, each once, in batches of one shape. A last batch that is not full is filled with -1, which nothing counts."""
    batch = min(batch, len(examples))
    for start in range(0, len(examples), batch):
        rows = [examples[n] for n in range(start, min(start + batch, len(examples)))]
        rows += [jax.tree.map(lambda a: np.full_like(a, -1), rows[0])] * (batch - len(rows))
        yield jax.tree.map(lambda *a: np.stack(a), *rows)


def added_up(parts: Iterable[Counted]) -> Sums:
    """The sums of all batches together, in double precision."""
    nll = correct = weight = 0.0
    for part in parts:
        nll, correct, weight = nll + float(part.nll), correct + float(part.correct), weight + float(part.weight)
    return Sums(nll, correct, weight)
