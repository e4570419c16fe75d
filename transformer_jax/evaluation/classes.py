"""How well classes are told apart."""

from typing import NamedTuple

import numpy as np


class Scores(NamedTuple):
    """Of each class, `[C]`; 0 where nothing is divided by nothing.

    Attributes:
        precision: TP / (TP + FP), the share of what was called so that is so.
        recall: TP / (TP + FN), the share of what is so that was called so.
        f1: 2 TP / (2 TP + FP + FN), their harmonic mean.
        support: how many there are.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray


def confusion(made: np.ndarray, right: np.ndarray, classes: int) -> np.ndarray:
    """How often each class was taken for each: int64 `[C, C]`, rows the right classes, columns what was made of them.

    Args:
        made: integers of any shape, from 0 to C - 1.
        right: the same; where negative, nothing is counted.
        classes: C.

    Raises:
        ValueError: shapes that differ, or a class out of range.
    """
    if made.shape != right.shape:
        raise ValueError(f"made: expected the shape of right, {right.shape}, received {made.shape}")
    made, right = made[right >= 0].astype(np.int64), right[right >= 0].astype(np.int64)
    for name, given in (("made", made), ("right", right)):
        if given.size and not 0 <= given.min() <= given.max() < classes:
            raise ValueError(f"{name}: expected classes from 0 to {classes - 1}, received {given.min()} to {given.max()}")
    return np.bincount(right * classes + made, minlength=classes**2).reshape(classes, classes)


def scores_of(confusion: np.ndarray) -> Scores:
    """Precision, recall and F1 of each class of a confusion `[C, C]`."""
    hits, said, support = confusion.diagonal(), confusion.sum(0), confusion.sum(1)
    return Scores(_ratio(hits, said), _ratio(hits, support), _ratio(2 * hits, said + support), support)


def macro_f1(confusion: np.ndarray) -> float:
    """The mean F1 of the classes that there are, or that were made."""
    occurs = confusion.sum(0) + confusion.sum(1) > 0
    return float(scores_of(confusion).f1[occurs].mean())


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(len(a)), where=b > 0)
