"""Time follows density: which tiles each backend works on, forward and backward, told by a score that reports where it is called."""

import collections
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import attention, masks

T, SIDE = 650, 128
COUNT = -(-T // SIDE)
# blockwise goes over the tiles once forward and once back; a kernel for dQ and another for dK and dV go over them twice.
PASSES = {"blockwise": 2, "tpu": 3}
Q, K = np.arange(T)[:, None], np.arange(T)
SHUFFLED = np.random.default_rng(0).permutation(T)
IDS = np.sort(np.random.default_rng(1).integers(0, 7, T))
SHUFFLED_IDS = IDS[SHUFFLED]
AHEAD = masks.from_function(lambda i: (i.k >= i.q + 2) & (i.k <= i.q + 40), bounds=lambda low, high: (low + 2, high + 40))


def ahead(q: Any, k: Any) -> Any:
    return (k >= q + 2) & (k <= q + 40)


# Masks, and where they allow.
IN_ORDER: dict[str, tuple[Any, Any]] = {
    "no mask": (None, np.ones((T, T), bool)),
    "causal": (masks.causal(), K <= Q),
    "window": (masks.sliding_window(150, 20), (K >= Q - 150) & (K <= Q + 20)),
    "prefix": (masks.prefix(np.array([300])), (K <= Q) | (K < 300)),
    "segments": (masks.segments(IDS[None]), IDS[:, None] == IDS),
    "causal & window & segments": (
        masks.causal() & masks.sliding_window(200) & masks.segments(IDS[None]),
        (K <= Q) & (K >= Q - 200) & (IDS[:, None] == IDS),
    ),
    "window | prefix": (masks.sliding_window(50) | masks.prefix(np.array([130])), ((K >= Q - 50) & (K <= Q)) | (K <= Q) | (K < 130)),
    "~causal": (~masks.causal(), K > Q),
    "a user's, with bounds": (AHEAD, ahead(Q, K)),
    "a user's, without bounds": (lambda i: (i.k // 200 == 1) & (i.q // 200 != 1), (K // 200 == 1) & (Q // 200 != 1)),
    "block sparse": (masks.block_sparse(np.eye(7, dtype=bool)[::-1], 100), Q // 100 + K // 100 == 6),
}


def tiles(allowed: Any) -> set[tuple[int, int]]:
    """Those with something allowed."""
    padded = np.zeros((COUNT * SIDE, COUNT * SIDE), bool)
    padded[:T, :T] = allowed
    return set(zip(*np.nonzero(padded.reshape(COUNT, SIDE, COUNT, SIDE).any((1, 3)))))


@pytest.fixture(scope="module")
def visited() -> Callable[..., dict[tuple[int, int], int]]:
    """`visited(backend, mask, traced=False, **options)`: how often each tile is worked on for value and gradients.

    Traced arrays are not known before the program runs.
    """

    def count(backend: str, mask: Any, traced: bool = False, **options: Any) -> dict[tuple[int, int], int]:
        seen: collections.Counter[tuple[int, int]] = collections.Counter()

        def note(q: Any, k: Any) -> None:
            seen[int(np.ravel(q)[0]) // SIDE, int(np.ravel(k)[0]) // SIDE] += 1

        def reporting(s: Any, i: Any) -> Any:
            jax.debug.callback(note, i.q_index, i.k_index)
            return s

        def loss(qkv: Any, mask: Any) -> Any:
            return attention(*qkv, mask=mask, score=reporting, backend=backend, tile=(SIDE, SIDE), **options).sum()

        a = jnp.ones((1, T, 1, 8), jnp.float32)
        if traced:
            jax.block_until_ready(jax.jit(jax.grad(loss))((a, a, a), mask))
        else:
            jax.block_until_ready(jax.jit(lambda qkv: jax.grad(loss)(qkv, mask))((a, a, a)))
        jax.effects_barrier()
        return dict(seen)

    return count


@pytest.mark.parametrize("backend", PASSES)
@pytest.mark.parametrize("name", IN_ORDER)
def test_in_order_exactly_the_tiles_with_something_allowed(name: str, backend: str, visited: Any) -> None:
    mask, allowed = IN_ORDER[name]
    assert visited(backend, mask) == dict.fromkeys(tiles(allowed), PASSES[backend])


@pytest.mark.parametrize("backend", PASSES)
def test_what_is_known_only_when_the_program_runs_is_skipped_too(backend: str, visited: Any) -> None:
    mask = masks.segments(jnp.asarray(IDS)[None]) & masks.causal()
    assert visited(backend, mask, traced=True) == dict.fromkeys(tiles((IDS[:, None] == IDS) & (K <= Q)), PASSES[backend])


def by_extremes(name: str, positions: Any, ids: Any) -> set[tuple[int, int]]:
    """The tiles that the smallest and largest position, or id, of their queries and keys do not rule out."""
    values = ids if name == "segments" else positions
    low, high = (np.array([extreme(values[n * SIDE : (n + 1) * SIDE]) for n in range(COUNT)]) for extreme in (np.min, np.max))
    possible = {
        "causal": low[None] <= high[:, None],
        "window": (high[None] >= low[:, None] - 150) & (low[None] <= high[:, None] + 20),
        "segments": (low[None] <= high[:, None]) & (high[None] >= low[:, None]),
        "a user's, with bounds": (high[None] >= low[:, None] + 2) & (low[None] <= high[:, None] + 40),
    }
    return set(zip(*np.nonzero(possible[name])))


@pytest.mark.slow
@pytest.mark.parametrize("backend", PASSES)
@pytest.mark.parametrize("name", ["causal", "window", "segments", "a user's, with bounds"])
@pytest.mark.parametrize("order", [np.roll(np.arange(T), 200), SHUFFLED], ids=["rolled", "shuffled"])
def test_out_of_order_those_that_the_extremes_cannot_rule_out(order: Any, name: str, backend: str, visited: Any) -> None:
    ids = IDS[order]
    mask = masks.segments(ids[None]) if name == "segments" else IN_ORDER[name][0]
    options = {} if name == "segments" else {"q_positions": order, "kv_positions": order}
    allowed = ids[:, None] == ids if name == "segments" else IN_ORDER[name][1][np.ix_(order, order)]
    expected = by_extremes(name, order, ids)
    assert visited(backend, mask, **options) == dict.fromkeys(expected, PASSES[backend])
    assert tiles(allowed) <= expected
