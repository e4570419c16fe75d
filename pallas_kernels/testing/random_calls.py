"""Random arrays, positions and scores of all kinds, and calls made of them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import Dropout, lookup, scores
from pallas_kernels.flash.functions import Index
from pallas_kernels.flash.scores import Score
from pallas_kernels.testing.calls import Call, Sizes
from pallas_kernels.testing.choosing import Choose
from pallas_kernels.testing.random_masks import random_mask


def normal(choose: Choose, *shape: int) -> jax.Array:
    """Normal numbers in float32."""
    return jnp.asarray(choose.rng.normal(size=shape), jnp.float32)


def random_arrays(choose: Choose, sizes: Sizes) -> Call:
    """A call without options."""
    T, S, N, K, H, Hv = sizes[1:]
    q, k, v = (normal(choose, *sizes.lead, *shape) for shape in ((T, N, H), (S, K, H), (S, K, Hv)))
    return Call(q, k, v)


def random_positions(choose: Choose, batch: int, length: int) -> np.ndarray:
    """Integers `[length]` or `[batch, length]`: shuffled, alike or not in each batch row, or any, with gaps, repeats and numbers below zero."""
    kind = choose.of(("shuffled", "shuffled by row", "any"))
    if kind == "shuffled":
        return choose.rng.permutation(length)
    if kind == "shuffled by row":
        return np.stack([choose.rng.permutation(length) for _ in range(batch)])
    return choose.rng.integers(-length, 2 * length, (batch, length))


def _swung(s: Any, i: Index, a: Any) -> Any:
    return s * (1 + 0.2 * a) + a * jnp.cos(0.3 * (i.k - i.q))


def _looked_up(s: Any, i: Index, table: Any) -> Any:
    return s + lookup(table, i.k - i.q + 3)


def _with_signature(axes: str) -> Callable[[Choose, Sizes], tuple[Score, ...]]:
    return lambda choose, sizes: (scores.from_function(_swung, a=(normal(choose, *sizes.of(axes)), axes)),)


def _bias(choose: Choose, sizes: Sizes) -> tuple[Score, ...]:
    axes = choose.of(("NTS", "BS", "BNTS"))
    return (scores.bias(normal(choose, *(n if axis in axes else 1 for axis, n in zip("BNTS", sizes.of("BNTS"))))),)


def alibi(choose: Choose, sizes: Sizes) -> tuple[Score, ...]:
    return (scores.alibi(normal(choose, sizes.N) / 9),)


def alibi_then_softcap(choose: Choose, sizes: Sizes) -> tuple[Score, ...]:
    return *alibi(choose, sizes), scores.softcap(2.0)


SCORES: dict[str, Callable[[Choose, Sizes], tuple[Score, ...]]] = {
    "bias": _bias,
    "softcap": lambda choose, sizes: (scores.softcap(2.0),),
    "relative_bias": lambda choose, sizes: (scores.relative_bias(normal(choose, sizes.N, 8), bidirectional=True, max_distance=17),),
    "alibi, then softcap": alibi_then_softcap,
    "own with a table": lambda choose, sizes: (scores.from_function(_looked_up, table=(normal(choose, sizes.N, 8), "N")),),
    **{f"own of {axes or 'no'} axes": _with_signature(axes) for axes in ("", "N", "BT", "BS", "NS", "TS")},
}


def random_score(choose: Choose, sizes: Sizes) -> tuple[Score, ...]:
    """One or two scores, with arrays of any signature."""
    return SCORES[choose.of(tuple(SCORES))](choose, sizes)


def random_dropout(choose: Choose) -> Dropout:
    """Three of ten dropped, by a seed that needs all 32 bits."""
    return Dropout(0.3, choose.rng.integers(2**32, dtype=np.uint32))


def random_call(choose: Choose, sizes: Sizes) -> Call:
    """A call with any of all options, lse wanted."""
    B, some = sizes.B, (False, True)
    q_positions = random_positions(choose, B, sizes.T) if choose.of(some) else None
    kv_positions = random_positions(choose, B, sizes.S) if choose.of(some) else None
    return replace(
        random_arrays(choose, sizes),
        mask=random_mask(choose, sizes, q_positions, kv_positions)[0] if choose.of(some) else None,
        score=random_score(choose, sizes) if choose.of(some) else None,
        sinks=normal(choose, sizes.N) if choose.of(some) else None,
        dropout=random_dropout(choose) if choose.of(some) else None,
        q_positions=q_positions,
        kv_positions=kv_positions,
        scale=choose.of((None, 0.3)),
        return_lse=True,
    )
