"""Random masks, each beside the booleans that it should equal, which are made in numpy from the mask's definition and not from its code."""

from collections.abc import Callable
from typing import Any

import numpy as np

from pallas_kernels import masks
from pallas_kernels.flash.functions import Index
from pallas_kernels.flash.masks import Mask
from pallas_kernels.testing.calls import Sizes
from pallas_kernels.testing.choosing import Choose

Truth = Any  # booleans, broadcastable to [B, N, T, S]
Positions = np.ndarray  # [B|1, 1, T, 1] of queries, [B|1, 1, 1, S] of keys


def random_mask(choose: Choose, sizes: Sizes, q_positions: Any = None, kv_positions: Any = None) -> tuple[Mask, np.ndarray]:
    """A mask of any kind: `mask_of_kind` of one that `choose` picks."""
    return mask_of_kind(choose.of(KINDS), choose, sizes, q_positions, kv_positions)


def mask_of_kind(kind: str, choose: Choose, sizes: Sizes, q_positions: Any = None, kv_positions: Any = None) -> tuple[Mask, np.ndarray]:
    """A mask, and the booleans `[B, N, T, S]` that it should equal.

    Args:
        kind: one of `KINDS`.
        q_positions: integers `[T]` or `[B, T]`; 0, 1, 2, ... unless given.
        kv_positions: integers `[S]` or `[B, S]`; 0, 1, 2, ... unless given.
    """
    q = np.asarray(np.arange(sizes.T) if q_positions is None else q_positions).reshape(-1, 1, sizes.T, 1)
    k = np.asarray(np.arange(sizes.S) if kv_positions is None else kv_positions).reshape(-1, 1, 1, sizes.S)
    make = _combined if kind == "combined" else LEAVES[kind]
    mask, truth = make(choose, sizes, q, k)
    return mask, np.broadcast_to(truth, sizes.of("BNTS"))


def _causal(choose: Choose, sizes: Sizes, q: Positions, k: Positions) -> tuple[Mask, Truth]:
    return masks.causal(), k <= q


def _sliding_window(choose: Choose, sizes: Sizes, q: Positions, k: Positions) -> tuple[Mask, Truth]:
    left, right = choose.of((0, 1, 13)), choose.of((0, 5))
    return masks.sliding_window(left, right), (q - left <= k) & (k <= q + right)


def _segments(choose: Choose, sizes: Sizes, q: Positions, k: Positions) -> tuple[Mask, Truth]:
    """Ids in order, as packed texts have them, or in any; several kinds of integers."""
    a, b = choose.rng.integers(0, 4, sizes.of("BT"), np.int8), choose.rng.integers(0, 4, sizes.of("BS"))
    if choose.of((True, False)):
        a, b = np.sort(a), np.sort(b)
    return masks.segments(a, b), a[:, None, :, None] == b[:, None, None, :]


def _prefix(choose: Choose, sizes: Sizes, q: Positions, k: Positions) -> tuple[Mask, Truth]:
    length = choose.rng.integers(0, sizes.S + 2, sizes.B)
    return masks.prefix(length), (k <= q) | (k < length[:, None, None, None])


def _lengths(choose: Choose, sizes: Sizes, q: Positions, k: Positions) -> tuple[Mask, Truth]:
    length = choose.rng.integers(0, sizes.S + 2, sizes.B)
    return masks.lengths(length), np.arange(sizes.S) < length[:, None, None, None]


def _valid(choose: Choose, sizes: Sizes, q: Positions, k: Positions) -> tuple[Mask, Truth]:
    """Padding in front, or holes."""
    first, holes = choose.rng.integers(0, sizes.S, (sizes.B, 1)), choose.rng.random(sizes.of("BS")) < 0.5
    flags = np.arange(sizes.S) >= first if choose.of((True, False)) else holes
    return masks.valid(flags), flags[:, None, None, :]


def _dense(choose: Choose, sizes: Sizes, q: Positions, k: Positions) -> tuple[Mask, Truth]:
    axes = choose.of(("BNTS", "TS", "NS", "BT"))
    flags = choose.rng.random([n if axis in axes else 1 for axis, n in zip("BNTS", sizes.of("BNTS"))]) < 0.6
    return masks.dense(flags), flags


def _block_sparse(choose: Choose, sizes: Sizes, q: Positions, k: Positions) -> tuple[Mask, Truth]:
    block = choose.of((1, 4, 9))
    layout = choose.rng.random((-(-sizes.T // block), -(-sizes.S // block))) < 0.5
    return masks.block_sparse(layout, block), np.kron(layout, np.ones((block, block), bool))[: sizes.T, : sizes.S]


def _dilated(choose: Choose, sizes: Sizes, q: Positions, k: Positions) -> tuple[Mask, Truth]:
    step = choose.of((1, 3))
    return masks.dilated(step), (q - k) % step == 0


def _band(i: Index, width: Any, first: Any) -> Any:
    return (abs(i.q - i.k) <= width) & (i.k_index >= first)


def _own(choose: Choose, sizes: Sizes, q: Positions, k: Positions) -> tuple[Mask, Truth]:
    """A user's mask without bounds: the width of a band depends on the head, the first key on the query."""
    width, first = choose.rng.integers(0, 2 * sizes.S, sizes.N), choose.rng.integers(-3, 9, sizes.of("BT"))
    truth = (abs(q - k) <= width[:, None, None]) & (np.arange(sizes.S) >= first[:, None, :, None])
    return masks.from_function(_band, width=(width, "N"), first=(first, "BT")), truth


def _ahead(i: Index) -> Any:
    return (i.k >= i.q + 2) & (i.k <= i.q + 7) & ((i.k + i.head + i.batch) % 3 != 0)


def _reach(low: Any, high: Any) -> tuple[Any, Any]:
    return low + 2, high + 7


def _own_with_bounds(choose: Choose, sizes: Sizes, q: Positions, k: Positions) -> tuple[Mask, Truth]:
    """A user's mask with bounds: the next few keys, some left out by head and batch."""
    head, batch = np.arange(sizes.N)[:, None, None], np.arange(sizes.B)[:, None, None, None]
    return masks.from_function(_ahead, bounds=_reach), (k >= q + 2) & (k <= q + 7) & ((k + head + batch) % 3 != 0)


def _combined(choose: Choose, sizes: Sizes, q: Positions, k: Positions) -> tuple[Mask, Truth]:
    """Two or three, by `&`, `|` and `~`."""

    def one() -> tuple[Mask, Truth]:
        mask, truth = LEAVES[choose.of(tuple(LEAVES))](choose, sizes, q, k)
        return (~mask, np.logical_not(truth)) if choose.of((False, True)) else (mask, truth)

    mask, truth = one()
    for _ in range(choose.of((1, 2))):
        other, also = one()
        mask, truth = (mask & other, truth & also) if choose.of((True, False)) else (mask | other, truth | also)
    return mask, truth


LEAVES: dict[str, Callable[[Choose, Sizes, Positions, Positions], tuple[Mask, Truth]]] = {
    "causal": _causal,
    "sliding_window": _sliding_window,
    "segments": _segments,
    "prefix": _prefix,
    "lengths": _lengths,
    "valid": _valid,
    "dense": _dense,
    "block_sparse": _block_sparse,
    "dilated": _dilated,
    "own": _own,
    "own with bounds": _own_with_bounds,
}
KINDS = (*LEAVES, "combined")
