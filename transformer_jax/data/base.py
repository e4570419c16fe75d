"""What data configs promise, and batches of what they prepare."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import grain
import numpy as np

from transformer_jax.config import Config
from transformer_jax.tokenize import Vocabulary


@dataclass(frozen=True)
class Prepared:
    """Data that is ready for training. Examples are trees of numpy arrays of fixed shapes, in which a negative token is padding, always on the right.

    Attributes:
        vocabulary: what the ids mean.
        train: examples.
        held_out: examples that are not in `train`.
        summary: one line on how much there is of what.
        digest: changes whenever the data does.
        labels: names of the classes, by id, where there are any.
        bytes_per_token: UTF-8 bytes for which a held-out token stands, on average; 0 where that means nothing.
    """

    vocabulary: Vocabulary
    train: grain.MapDataset
    held_out: grain.MapDataset
    summary: str
    digest: str
    labels: tuple[str, ...] = ()
    bytes_per_token: float = 0.0


class Data(Config, ABC):
    """What to train on: open base of the data configs."""

    @abstractmethod
    def prepare(self, context: int) -> Prepared:
        """Read the data, as examples of at most `context` tokens at once: the model's max_length.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the data is not what the config says, or too little for `context`.
        """


def batches(dataset: grain.MapDataset, *, batch: int, seed: int) -> grain.DatasetIterator:
    """Shuffled batches without end; each epoch has every example once, in an order of its own.

    Args:
        dataset: examples, trees of arrays [...].
        batch: examples in a training step.
        seed: of the order of the examples, 0 to 2**32 - 1.

    Returns:
        An iterator over trees of arrays [batch, ...]; `get_state` and `set_state` resume exactly.

    Raises:
        ValueError: `batch` is less than 1, or `seed` out of range.
    """
    if batch < 1:
        raise ValueError(f"batch: expected at least 1, received {batch}")
    steps = dataset.shuffle(seed=seed).repeat().batch(batch)
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def bytes_per_token(vocabulary: Vocabulary, tokens: np.ndarray, most: int = 2**17) -> float:
    """UTF-8 bytes for which one of the first `most` tokens stands on average."""
    some = tokens[:most]
    return sum(map(len, vocabulary.utf8(some.tolist()))) / len(some)


def check_held_out(config: Config) -> None:
    """Refuses a `held_out` that is no fraction."""
    if not 0 < (value := config.held_out) < 1:  # type: ignore[attr-defined]
        raise ValueError(f"{type(config).__name__}.held_out: expected a fraction between 0 and 1, both excluded, received {value}")


def check_context(context: int) -> None:
    """Refuses a context without tokens."""
    if context < 1:
        raise ValueError(f"context: expected at least 1 token, received {context}")
