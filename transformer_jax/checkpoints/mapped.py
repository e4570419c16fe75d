"""Arrays over the bytes of a file, looked through so that few of its pages are in memory."""

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

# Bytes of an array that are copied in one go: they stay in a core's cache while they are converted and transposed.
PIECE = 1 << 17


def mapped(file: Path, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """A read-only array of a file's bytes from `offset` on. Its pages come into memory as they are looked at."""
    empty = np.empty(shape, dtype)
    if not empty.nbytes:
        return empty
    start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    with open(file, "rb") as opened:
        pages = mmap.mmap(opened.fileno(), offset - start + empty.nbytes, access=mmap.ACCESS_READ, offset=start)
    return np.ndarray(shape, dtype, buffer=pages, offset=offset - start)


def copy(target: np.ndarray, source: np.ndarray) -> None:
    """Converts `source` into `target`, of the same shape, piece by piece, as its memory lies; pages of a file that it shows are let go on the way."""
    if source.nbytes <= PIECE:
        target[...] = source.astype(target.dtype, copy=False)
        _let_go(source)
    else:
        for at in _pieces(source):
            copy(target[at], source[at])


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are equal, number by number; what follows the first piece that is not is not looked at."""
    if a.shape != b.shape or a.nbytes > PIECE:
        return a.shape == b.shape and all(same(a[at], b[at]) for at in _pieces(a))
    equal = np.array_equal(a, b)
    _let_go(a)
    _let_go(b)
    return equal


def _pieces(array: np.ndarray) -> Iterator[tuple[slice, ...]]:
    axis = max(range(array.ndim), key=lambda n: (array.shape[n] > 1, abs(array.strides[n])))
    rows = max(1, PIECE * array.shape[axis] // array.nbytes)
    for n in range(0, array.shape[axis], rows):
        yield (*(slice(None),) * axis, slice(n, n + rows))


def _let_go(array: np.ndarray) -> None:
    base = array.base
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)
