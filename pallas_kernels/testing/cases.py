"""The cases that the checks judge: random calls, each with no more options than its check is about."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import masks
from pallas_kernels.flash.functions import Index
from pallas_kernels.testing.calls import Call
from pallas_kernels.testing.choosing import Choose, Space
from pallas_kernels.testing.random_calls import SCORES, alibi, alibi_then_softcap, normal, random_arrays, random_dropout, random_positions
from pallas_kernels.testing.random_masks import KINDS, mask_of_kind

Case = Callable[[Choose, Space], Call]

GARBAGE = 1e4


def plain(choose: Choose, space: Space) -> Call:
    return random_arrays(choose, space.choose(choose))


def causal(choose: Choose, space: Space) -> Call:
    return replace(plain(choose, space), mask=masks.causal())


def plain_or_causal(choose: Choose, space: Space) -> Call:
    return choose.of((plain, causal))(choose, space)


def scaled(choose: Choose, space: Space) -> Call:
    return replace(plain(choose, space), scale=choose.of((0.7, -0.3, 1.0)))


def large(choose: Choose, space: Space) -> Call:
    """Scores of some hundreds, alike in sign over a row: their exponentials overflow, or are all 0, unless the row's largest is subtracted first."""
    call = plain(choose, space)
    return replace(call, q=call.q.at[..., 0].set(50), k=call.k.at[..., 0].set(50 * choose.of((1, -1))))


def masked(choose: Choose, space: Space) -> Call:
    kind, sizes = choose.of(KINDS), space.choose(choose)
    return replace(random_arrays(choose, sizes), mask=mask_of_kind(kind, choose, sizes)[0])


def scored(choose: Choose, space: Space) -> Call:
    kind, sizes = choose.of(tuple(SCORES)), space.choose(choose)
    return replace(random_arrays(choose, sizes), score=SCORES[kind](choose, sizes))


def placed(choose: Choose, space: Space) -> Call:
    """Positions, read by a mask or by a score."""
    reads_them, sizes = choose.of(("mask", "score")), space.choose(choose)
    call = replace(
        random_arrays(choose, sizes),
        q_positions=random_positions(choose, sizes.B, sizes.T),
        kv_positions=random_positions(choose, sizes.B, sizes.S),
    )
    if reads_them == "mask":
        return replace(call, mask=masks.causal() & masks.sliding_window(17))
    return replace(call, score=alibi(choose, sizes))


def placed_in_order(choose: Choose, space: Space) -> Call:
    """Causal, and the positions of the keys are given: a judge may permute keys with them."""
    call = causal(choose, space)
    return replace(call, kv_positions=np.arange(call.k.shape[-3]))


def with_sinks(choose: Choose, space: Space) -> Call:
    sizes = space.choose(choose)
    return replace(random_arrays(choose, sizes), sinks=2 * normal(choose, sizes.N))


def with_lse(make: Case) -> Case:
    """The same cases, lse wanted too."""
    return lambda choose, space: replace(make(choose, space), return_lse=True)


def dropped(choose: Choose, space: Space) -> Call:
    return replace(plain(choose, space), dropout=random_dropout(choose))


def _scattered(i: Index, rows: Any) -> Any:
    return rows & (i.k_index != 1)


def with_empty_rows(choose: Choose, space: Space) -> Call:
    """Rows with nothing allowed: all of a batch row, so that every tile is empty, or some beside others that are not."""
    kind, sizes = choose.of(("all of a batch row", "scattered")), space.choose(choose)
    if kind == "scattered":
        rows = np.arange(sizes.T) % 3 != choose.rng.integers(0, 3, (sizes.B, 1))
        mask = masks.from_function(_scattered, rows=(rows, "BT"))
    else:
        mask = masks.lengths(choose.rng.permutation(np.arange(sizes.B) * (sizes.S - 1)))
    return replace(random_arrays(choose, sizes), mask=mask)


def with_empty_rows_and_sinks(choose: Choose, space: Space) -> Call:
    call = with_empty_rows(choose, space)
    return replace(call, sinks=normal(choose, call.q.shape[-2]), return_lse=True)


def with_garbage_hidden(choose: Choose, space: Space) -> Call:
    """Keys and values at padding are huge.

    They are finite: 0 * NaN is NaN in the formula itself, and no kernel need be better than that.
    """
    kind, sizes = choose.of(("lengths", "valid")), space.choose(choose)
    call, length = random_arrays(choose, sizes), choose.rng.integers(1, sizes.S, sizes.B)
    places = np.arange(sizes.S)
    flags = places < length[:, None] if kind == "lengths" else places >= length[:, None]
    factor = np.where(flags, 1, GARBAGE).reshape(*sizes.lead, sizes.S, 1, 1).astype(np.float32)
    return replace(call, k=call.k * factor, v=call.v * factor, mask=masks.lengths(length) if kind == "lengths" else masks.valid(flags))


def by_batch_row(choose: Choose, space: Space) -> Call:
    """A call whose mask differs between batch rows, or a plain one, with each of the leading dimensions."""
    kind, sizes = choose.of(("plain", "masked")), space.choose(choose)
    call = random_arrays(choose, sizes)
    return call if kind == "plain" else replace(call, mask=masks.lengths(choose.rng.integers(1, sizes.S + 1, sizes.B)))


def stacked(choose: Choose, space: Space) -> Call:
    """Three calls in one, along a new first axis of all arrays, those of masks and scores too."""
    kind, sizes = choose.of(("plain", "masked and scored")), space.choose(choose)

    def one() -> Call:
        call = random_arrays(choose, sizes)
        if kind == "plain":
            return call
        lengths = choose.rng.integers(1, sizes.S + 1, sizes.B)
        return replace(call, mask=masks.lengths(lengths), score=alibi(choose, sizes))

    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *(one() for _ in range(3)))


def together(choose: Choose, space: Space) -> Call:
    """All options at once."""
    sizes = space.choose(choose)
    return replace(
        random_arrays(choose, sizes),
        mask=masks.causal() & masks.valid(choose.rng.random(sizes.of("BS")) < 0.8),
        score=alibi_then_softcap(choose, sizes),
        sinks=normal(choose, sizes.N),
        dropout=random_dropout(choose),
        q_positions=choose.rng.permutation(sizes.T),
        kv_positions=choose.rng.permutation(sizes.S),
        scale=0.5,
        return_lse=True,
    )


def in_short_floats(choose: Choose, space: Space) -> Call:
    dtype = choose.of((jnp.bfloat16, jnp.float16))
    return plain(choose, space).astype(dtype)
