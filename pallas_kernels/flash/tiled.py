"""A request cut into tiles: what its functions read, which tiles are worth a visit, and the lists of them. What the kernels for every chip share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.flash import masks
from pallas_kernels.flash.lists import Visits, judge, visits
from pallas_kernels.flash.masks import Verdict
from pallas_kernels.flash.request import Request
from pallas_kernels.flash.tiles import Operands, by_group

T_AXIS, S_AXIS = 2, 3


class Scalars(NamedTuple):
    """What a kernel reads one number at a time, all of it int32 in one dimension: the lists, the numbers of batch rows and heads, dropout's seed."""

    order: Any
    full: Any
    partial: Any
    batches: Any
    heads: Any
    seed: Any


class Tiled:
    """One request cut into tiles.

    Attributes:
        counts: tiles of queries and of keys.
        ragged: whether the last tile of queries, of keys, reaches beyond the end; where that of keys does, `mask` forbids what is there.
        leaves: the arrays that a tile's functions read, `[B|1, N|1, T|1, S|1, *features]`: positions that were given, those of the mask and of the scores.
        structure: of the tree of them, a dict of "q", "k", "mask", "scores".
        verdict: on every tile, `[B|1, N|1, query tiles, key tiles]`.
    """

    def __init__(self, request: Request, tile: tuple[int, int]) -> None:
        sizes = request.sizes
        self.request, self.tile = request, tile
        self.B, self.T, self.S, self.N, self.K, self.G = (sizes[a] for a in "BTSNKG")
        self.counts = -(-self.T // tile[0]), -(-self.S // tile[1])
        self.ragged = bool(self.T % tile[0]), bool(self.S % tile[1])
        self.mask = request.mask
        if self.ragged[1]:
            inside = masks.first_keys(np.full((1, 1, 1, 1), self.S, np.int32))
            self.mask = inside if self.mask is None else self.mask & inside
        self.index = request.index()
        read = {
            "q": None if request.q_positions is None else self.index.q,
            "k": None if request.kv_positions is None else self.index.k,
            "mask": self.mask,
            "scores": request.score,
        }
        self.leaves, self.structure = jax.tree.flatten(read)
        self.verdict = self._verdict()

    def _verdict(self) -> Verdict:
        operands = by_group(Operands(self.index, self.mask), self.N)
        verdict = static = judge(operands, (self.T, self.S), self.tile, static=True)
        self._perhaps = np.logical_not(static.never)
        if any(isinstance(a, jax.Array) for a in jax.tree.leaves(operands)):
            verdict = judge(operands, (self.T, self.S), self.tile)
        never, always = (x[:, :, 0] for x in verdict)
        # The last keys of a tile that reaches beyond the end are not allowed, and judge has not seen them.
        return Verdict(never, always & (np.arange(self.counts[1]) < self.S // self.tile[1]))

    def lists(self, sideways: bool = False) -> tuple[Visits, int]:
        """For each row of tiles those to visit (sideways: for each column), and the most that any can have."""
        verdict, perhaps = self.verdict, self._perhaps
        if sideways:
            verdict, perhaps = Verdict(*(x.swapaxes(-1, -2) for x in verdict)), perhaps.swapaxes(-1, -2)
        return visits(verdict), max(1, int(perhaps.sum(-1).max()))

    def listed(self, lists: Visits, rows: int) -> Callable[..., Any]:
        """`(batch, head, row) -> place of that row's counts in the lists`; the row's tiles begin at place * columns in `order`."""
        b, n = lists.full.shape[:2]

        def place(batch: Any, head: Any, row: Any) -> Any:
            return ((batch if b > 1 else 0) * n + (head if n > 1 else 0)) * rows + row

        return place

    def scalars(self, lists: Visits) -> Scalars:
        dropout = self.request.dropout
        seed = jnp.zeros(1, jnp.int32) if dropout is None else jax.lax.bitcast_convert_type(jnp.asarray(dropout.seed).reshape(1).astype(jnp.uint32), jnp.int32)
        return Scalars(*(jnp.asarray(a).reshape(-1) for a in (*lists, self.index.batch, self.index.head, seed)))
