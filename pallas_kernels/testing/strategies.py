"""Hypothesis strategies for property tests of attention: sizes, masks with what they should allow, scores, positions, whole calls.

They make the same cases as `check_attention`; here hypothesis chooses, and so it can shrink them.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from hypothesis import strategies as st

from pallas_kernels.flash.masks import Mask
from pallas_kernels.flash.scores import Score
from pallas_kernels.testing.calls import Call, Sizes
from pallas_kernels.testing.random_calls import random_call, random_positions, random_score
from pallas_kernels.testing.random_masks import random_mask

__all__ = ["calls", "masks", "positions", "scores", "sizes"]

Option = TypeVar("Option")


class _Drawn:
    """Choices by hypothesis: see `choosing.Choose`."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**16)))

    def of(self, options: Sequence[Option]) -> Option:
        return self._draw(st.sampled_from(options))


@st.composite
def sizes(draw: st.DrawFn, longest: int = 17) -> Sizes:
    """Sizes of a call: up to three leading dimensions, T and S up to `longest`, N a multiple of K."""
    lead = draw(st.sampled_from(((), (1,), (2,), (2, 3), (1, 2, 2))))
    length, few = st.integers(1, longest), st.integers(1, 3)
    K, H, Hv = draw(few), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    return Sizes(lead, draw(length), draw(length), K * draw(few), K, H, Hv)


@st.composite
def masks(draw: st.DrawFn, sizes: Sizes, q_positions: np.ndarray | None = None, kv_positions: np.ndarray | None = None) -> tuple[Mask, np.ndarray]:
    """A mask of any kind or several combined, and the booleans `[B, N, T, S]` that it should equal.

    Args:
        sizes: of the call.
        q_positions: of the call, integers `[T]` or `[B, T]`.
        kv_positions: of the call, integers `[S]` or `[B, S]`.
    """
    return random_mask(_Drawn(draw), sizes, q_positions, kv_positions)


@st.composite
def scores(draw: st.DrawFn, sizes: Sizes) -> tuple[Score, ...]:
    """Scores for a call of these sizes, built-in or own, with float32 arrays of all signatures."""
    return random_score(_Drawn(draw), sizes)


@st.composite
def positions(draw: st.DrawFn, batch: int, length: int) -> np.ndarray:
    """Integers `[length]` or `[batch, length]`: shuffled, alike or not in each batch row, or any, with gaps, repeats and numbers below zero."""
    return random_positions(_Drawn(draw), batch, length)


@st.composite
def calls(draw: st.DrawFn, longest: int = 17) -> Call:
    """A call with any of all options: `attention(call.q, call.k, call.v, **call.options)`, which returns o and lse."""
    return random_call(_Drawn(draw), draw(sizes(longest)))
