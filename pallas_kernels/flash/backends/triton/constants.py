"""What a kernel is compiled for, and the tuples by which it is told: frozen, and compared by value."""

from typing import Any, NamedTuple


class Read(NamedTuple):
    """An array of a tile: its number among those that are read, and whether it varies over B, N, T, S."""

    number: int
    axes: tuple[bool, ...]


class Dropped(NamedTuple):
    """Dropout: the heads of the whole call, the hash below which nothing is kept, and by what is multiplied what is."""

    heads: int
    least: int
    factor: float


class Constants(NamedTuple):
    """All that is known when a kernel is compiled.

    Attributes:
        masks, scores: see builtin.py.
        positions: of queries and of keys, where given.
        ragged: whether the last tile of queries, of keys, reaches beyond the end.
        steps: of what T and S are multiples, 16 at most.
        listed: whether the lists of tiles differ by B, by N.
        N, K, G, H, V: heads of queries and of keys, query heads to a key head, features of q and k, of v.
        HP, VP: the powers of two that H and V are lengthened to in a tile.
        BQ, BK: queries and keys to a tile.
    """

    masks: tuple[Any, ...]
    scores: tuple[Any, ...]
    dropout: Dropped | None
    positions: tuple[Read | None, Read | None]
    ragged: tuple[bool, bool]
    steps: tuple[int, int]
    listed: tuple[bool, ...]
    scale: float
    N: int
    K: int
    G: int
    H: int
    V: int
    HP: int
    VP: int
    BQ: int
    BK: int


class Spot(NamedTuple):
    """Where a tile is, in a kernel: batch row and head, places and positions of queries and keys, the lengths. Places and positions stay at the last one,
    `k_index` goes on."""

    b: Any
    n: Any
    q: Any
    k: Any
    q_position: Any
    k_position: Any
    k_index: Any
    T: Any
    S: Any
