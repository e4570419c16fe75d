"""A call of attention in one form, checked: what every backend is handed."""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.flash import masks, scores
from pallas_kernels.flash.checking import check
from pallas_kernels.flash.functions import Index, narrow, place
from pallas_kernels.flash.masks import Mask, as_mask
from pallas_kernels.flash.scores import Score


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dropout:
    """Attention dropout: p is kept where a hash of seed, batch, head and both positions says so, and divided by 1 - rate.

    Args:
        rate: probability of dropping, in [0, 1).
        seed: an integer or an integer array of one element, taken as uint32.
        num_heads: of the whole call; `attention` fills it in.
    """

    rate: float = field(metadata={"static": True})
    seed: Any = 0
    num_heads: int | None = field(default=None, metadata={"static": True})

    def keep(self, i: Index) -> Any:
        """Booleans, broadcast to the tile that `i` describes."""
        u32, num_heads = jnp.uint32, self.num_heads or 1

        def mix(x: Any) -> Any:
            x = (x ^ (x >> u32(16))) * u32(0x7FEB352D)
            x = (x ^ (x >> u32(15))) * u32(0x846CA68B)
            return x ^ (x >> u32(16))

        batch, head, q, k = (jnp.asarray(a).astype(u32) for a in (i.batch, i.head, i.q, i.k))
        x = jnp.asarray(self.seed).astype(u32) ^ (batch * u32(num_heads) + head) * u32(0xC2B2AE35)
        x = mix(x ^ q * u32(0x9E3779B1))
        x = mix(x ^ k * u32(0x85EBCA77))
        return x >= u32(int(self.rate * 2**32))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Request:
    """q `[B, T, N, H]`, k `[B, S, K, H]`, v `[B, S, K, Hv]`; arrays of masks and scores `[B|1, N|1, T|1, S|1, *features]`; positions `[B|1, T|S]`.

    `batches` `[B, 1, 1, 1]` and `heads` `[1, N, 1, 1]` are int32 numbers in the whole call, of which a device may have a share. Numpy arrays are known
    before the program runs; positions that are None are 0, 1, 2, ..., known as well.
    """

    q: Any
    k: Any
    v: Any
    mask: Mask | None
    score: tuple[Score, ...]
    sinks: Any
    dropout: Dropout | None
    q_positions: Any
    kv_positions: Any
    batches: Any
    heads: Any
    scale: float = field(metadata={"static": True})
    tile: tuple[int, int] | None = field(default=None, metadata={"static": True})

    @property
    def sizes(self) -> dict[str, int]:
        """B, T, S, N, K, H, Hv by name, and G, the query heads to a kv head."""
        (B, T, N, H), (_, S, K, Hv) = self.q.shape, self.v.shape
        return {"B": B, "T": T, "S": S, "N": N, "K": K, "H": H, "Hv": Hv, "G": N // K}

    @property
    def without_tiles(self) -> str | None:
        """Why the arrays cannot be cut into tiles, or None."""
        if not all(isinstance(n, int) for n in self.sizes.values()):
            return "needs sizes that are known when the program is made, not the symbols of jax.export"
        return "takes no empty arrays" if min(self.sizes.values()) == 0 else None

    @property
    def accumulator(self) -> Any:
        """The dtype of scores, softmax and lse: float32, float64 if the inputs are."""
        return accumulator(self.q.dtype)

    def index(self) -> Index:
        """Where every element is, each field `[B|1, N|1, T|1, S|1]`; numpy where known before the program runs."""
        s = self.sizes
        places = {a: np.arange(s[a], dtype=np.int32) for a in "TS"}
        q = places["T"][None] if self.q_positions is None else self.q_positions
        k = places["S"][None] if self.kv_positions is None else self.kv_positions
        return Index(
            batch=self.batches,
            head=self.heads,
            q=q[:, None, :, None],
            k=k[:, None, None, :],
            q_index=places["T"][None, None, :, None],
            k_index=places["S"][None, None, None, :],
        )


def accumulator(dtype: Any) -> Any:
    """float64 for float64, float32 for all other floats."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def float_arrays(score: tuple[Score, ...]) -> list[Any]:
    """The arrays of scores that have gradients, in order."""
    return [a for a in jax.tree.leaves(score) if jnp.issubdtype(jnp.result_type(a), jnp.floating)]


def with_float_arrays(score: tuple[Score, ...], arrays: list[Any]) -> tuple[Score, ...]:
    """The same scores with other such arrays."""
    given = iter(arrays)
    return jax.tree.map(lambda a: next(given) if jnp.issubdtype(jnp.result_type(a), jnp.floating) else a, score)


def _numbers(n: Any) -> Any:
    """0 to n - 1; n is no int where jax.export leaves the batch open."""
    return np.arange(n, dtype=np.int32) if isinstance(n, int) else jnp.arange(n, dtype=jnp.int32)


def make_request(
    q: Any, k: Any, v: Any, mask: Any, score: Any, scale: float | None, sinks: Any, dropout: Dropout | None, q_positions: Any, kv_positions: Any,
    tile: tuple[int, int] | None = None,
) -> Request:  # fmt: skip
    """Checks a call and brings it to one form.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    q, k, v = (_floats(name, a) for name, a in (("q", q), ("k", k), ("v", v)))
    lead = q.shape[:-3]
    for name, array in (("k", k), ("v", v)):
        if array.dtype != q.dtype:
            raise TypeError(f"{name}: expected q's dtype {q.dtype}, received {array.dtype}")
        if array.shape[:-3] != lead:
            raise ValueError(f"{name}: expected q's leading dimensions {lead}, received {array.shape[:-3]} in shape {array.shape}")
    if k.shape[-3:-1] != v.shape[-3:-1]:
        raise ValueError(f"v: expected k's [S, K] = {k.shape[-3:-1]}, received {v.shape[-3:-1]} in shape {v.shape}")
    if k.shape[-1] != q.shape[-1]:
        raise ValueError(f"k: expected q's head dimension {q.shape[-1]}, received {k.shape[-1]} in shape {k.shape}")
    if k.shape[-2] == 0 or q.shape[-2] % k.shape[-2]:
        raise ValueError(f"q: expected a number of heads that is a multiple of k's {k.shape[-2]}, received {q.shape[-2]}")
    q, k, v = (a.reshape((-1, *a.shape[-3:])) if a.size else a.reshape((int(np.prod(lead)), *a.shape[-3:])) for a in (q, k, v))
    request = Request(
        q,
        k,
        v,
        mask=as_mask(mask),
        score=_as_scores(score),
        sinks=_sinks(sinks, q),
        dropout=_dropout(dropout, q.shape[2]),
        q_positions=_positions("q_positions", q_positions, q.shape[0], q.shape[1]),
        kv_positions=_positions("kv_positions", kv_positions, k.shape[0], k.shape[1]),
        batches=_numbers(q.shape[0]).reshape(-1, 1, 1, 1),
        heads=np.arange(q.shape[2], dtype=np.int32).reshape(1, -1, 1, 1),
        scale=_scale(scale, q.shape[-1]),
        tile=_tile(tile),
    )
    return _place_functions(request)


def _place_functions(request: Request) -> Request:
    def is_leaf(x: Any) -> bool:
        return isinstance(x, (masks.Leaf, Score))

    def placed(node: Any) -> Any:
        function = place(node.function, request.sizes)
        if isinstance(node, Score):
            check(function, request.accumulator, kind="score", expected=request.accumulator)
        else:
            check(function, kind="mask", expected=jnp.bool_)
        return replace(node, function=function)

    mask, score = jax.tree.map(placed, (request.mask, request.score), is_leaf=is_leaf)
    return replace(request, mask=mask, score=score)


def _floats(name: str, array: Any) -> Any:
    if not isinstance(array, (np.ndarray, jax.Array)):
        raise TypeError(f"{name}: expected an array, received {type(array).__name__}")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name}: expected floats, received {array.dtype}")
    if array.ndim < 3:
        raise ValueError(f"{name}: expected shape [..., length, heads, features], received {array.shape}")
    return jnp.asarray(array)


def _scale(scale: Any, head_dim: int) -> float:
    if scale is None:
        return float(max(head_dim, 1) ** -0.5)
    if isinstance(scale, (int, float, np.number)) and not isinstance(scale, bool):
        if not np.isfinite(scale):
            raise ValueError(f"scale: expected a finite number, received {scale}")
        return float(scale)
    raise TypeError(f"scale: expected a Python number, received {type(scale).__name__}; multiply q by a learned scale instead")


def _tile(tile: Any) -> tuple[int, int] | None:
    if tile is None:
        return None
    sides = tuple(tile) if isinstance(tile, (tuple, list)) else ()
    if len(sides) != 2 or not all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n > 0 for n in sides):
        raise ValueError(f"tile: expected two positive integers, queries and keys to a tile, received {tile!r}")
    return int(sides[0]), int(sides[1])


def _sinks(sinks: Any, q: Any) -> Any:
    if sinks is None:
        return None
    sinks = sinks if isinstance(sinks, (np.ndarray, jax.Array)) else np.asarray(sinks)
    if jnp.shape(sinks) != (q.shape[2],) or not jnp.issubdtype(jnp.result_type(sinks), jnp.floating):
        raise ValueError(f"sinks: expected floats of shape ({q.shape[2]},), one for each query head, received {jnp.result_type(sinks)} {jnp.shape(sinks)}")
    return jnp.asarray(sinks, accumulator(q.dtype))


def _positions(name: str, positions: Any, batch: int, length: int) -> Any:
    if positions is None:
        return None
    positions = positions if isinstance(positions, (np.ndarray, jax.Array)) else np.asarray(positions)
    if not jnp.issubdtype(jnp.result_type(positions), jnp.integer):
        raise TypeError(f"{name}: expected integers, received {jnp.result_type(positions)}")
    if jnp.shape(positions) not in ((length,), (1, length), (batch, length)):
        raise ValueError(f"{name}: expected shape ({length},) or ({batch}, {length}), received {jnp.shape(positions)}")
    return narrow(positions, name).reshape((-1, length) if length else (1, 0))


def _as_scores(score: Any) -> tuple[Score, ...]:
    if score is None:
        return ()
    items = []
    for item in score if isinstance(score, (tuple, list)) else (score,):
        if not isinstance(item, Score) and not callable(item):
            raise TypeError(f"score: expected scores, functions or None, received {type(item).__name__}")
        items.append(item if isinstance(item, Score) else scores.from_function(item))
    return tuple(items)


def _dropout(dropout: Any, num_heads: int) -> Dropout | None:
    if dropout is None:
        return None
    if not isinstance(dropout, Dropout):
        raise TypeError(f"dropout: expected Dropout(rate, seed), received {type(dropout).__name__}")
    if not isinstance(dropout.rate, (int, float, np.number)) or not 0 <= dropout.rate < 1:
        raise ValueError(f"dropout: rate: expected a number in [0, 1), received {dropout.rate!r}")
    dropout = replace(dropout, num_heads=num_heads)
    if isinstance(dropout.seed, int) and not isinstance(dropout.seed, bool):
        return replace(dropout, seed=np.uint32(dropout.seed % 2**32))
    if not jnp.issubdtype(jnp.result_type(dropout.seed), jnp.integer) or jnp.size(dropout.seed) != 1:
        raise TypeError(f"dropout: seed: expected one integer, received {jnp.result_type(dropout.seed)} {jnp.shape(dropout.seed)}")
    return replace(dropout, seed=jnp.reshape(dropout.seed, ()))
