"""What the tests of kernels share: attention in float64 numpy, one row at a time, and random masks beside what they should allow."""

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy.special import logsumexp

from pallas_kernels.testing import Sizes, strategies


@pytest.fixture(autouse=True, scope="module")
def unoptimised() -> Iterator[None]:
    """The programs are tiny and XLA's optimising them is half of the time; the large profile and slow tests have it."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", os.environ.get("HYPOTHESIS_PROFILE", "ci") == "ci")
    yield
    jax.config.update("jax_disable_most_optimizations", before)


class Gradients(NamedTuple):
    """`s`: of the scaled products; `score`: of what the scores made of them, `[B, N, T, S]` both."""

    q: Any
    k: Any
    v: Any
    sinks: Any
    s: Any
    score: Any


class Expected(NamedTuple):
    """o `[B, T, N, Hv]`, lse `[B, N, T]`, `gradients(do, dlse)`."""

    o: Any
    lse: Any
    gradients: Callable[[Any, Any], Gradients]


@pytest.fixture(scope="session")
def oracle() -> Callable[..., Expected]:
    """`oracle(q, k, v, *, scale, allowed, score, sinks, keep, rate)`; `score(s)` gives the changed scores and their derivative by s."""
    return _attention


def _attention(
    q: Any, k: Any, v: Any, *, scale: float | None = None, allowed: Any = True, score: Any = None, sinks: Any = None, keep: Any = True, rate: float = 0.0
) -> Expected:
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    (B, T, N, H), (_, S, K, _) = q.shape, k.shape
    scale = 1 / np.sqrt(H) if scale is None else scale
    allowed, keep = (np.broadcast_to(a, (B, N, T, S)) for a in (allowed, keep))
    heads = [(b, n, n // (N // K)) for b in range(B) for n in range(N)]
    s = np.zeros((B, N, T, S))
    for b, n, g in heads:
        s[b, n] = scale * (q[b, :, n] @ k[b, :, g].T)
    s, slope = (s, 1.0) if score is None else score(s)
    p, p_sink, lse = np.zeros((B, N, T, S)), np.zeros((B, N, T)), np.full((B, N, T), -np.inf)
    for row in np.ndindex(B, N, T):
        logits = s[row][allowed[row]]
        if sinks is not None:
            logits = np.append(logits, np.float64(sinks[row[1]]))
        if logits.size:
            lse[row] = logsumexp(logits)
            p[row][allowed[row]] = np.exp(s[row][allowed[row]] - lse[row])
            p_sink[row] = 0 if sinks is None else np.exp(np.float64(sinks[row[1]]) - lse[row])
    kept = np.where(keep, p / (1 - rate), 0)
    o = np.zeros((B, T, N, v.shape[-1]))
    for b, n, g in heads:
        o[b, :, n] = kept[b, n] @ v[b, :, g]

    def gradients(do: Any, dlse: Any) -> Gradients:
        do, dlse = np.asarray(do, np.float64), np.asarray(dlse, np.float64)
        dq, dk, dv, d_sinks, d_score = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape), np.zeros(N), np.zeros(p.shape)
        for b, n, g in heads:
            dp = np.where(keep[b, n], do[b, :, n] @ v[b, :, g].T / (1 - rate), 0)
            common = dlse[b, n] - (dp * p[b, n]).sum(-1)
            d_score[b, n] = p[b, n] * (dp + common[:, None])
            d_sinks[n] += (p_sink[b, n] * common).sum()
            dv[b, :, g] += kept[b, n].T @ do[b, :, n]
        d_s = d_score * slope
        for b, n, g in heads:
            dq[b, :, n] = scale * d_s[b, n] @ k[b, :, g]
            dk[b, :, g] += scale * d_s[b, n].T @ q[b, :, n]
        return Gradients(dq, dk, dv, d_sinks, d_s, d_score)

    return Expected(o, lse, gradients)


@pytest.fixture(scope="session")
def kept_by_hand() -> Callable[..., Any]:
    """`kept_by_hand(dropout, num_heads, q_positions, kv_positions)`: the hash `[B, N, T, S]` in Python's integers, one element at a time."""
    return _kept


def _kept(dropout: Any, num_heads: int, q_positions: Any, kv_positions: Any) -> Any:
    wrap = 2**32

    def mix(x: int) -> int:
        x = (x ^ x >> 16) * 0x7FEB352D % wrap
        x = (x ^ x >> 15) * 0x846CA68B % wrap
        return x ^ x >> 16

    keep = np.zeros((len(q_positions), num_heads, q_positions.shape[1], kv_positions.shape[1]), bool)
    for b, n, t, s in np.ndindex(keep.shape):
        x = dropout.seed % wrap ^ (b * num_heads + n) * 0xC2B2AE35 % wrap
        x = mix(x ^ int(q_positions[b, t]) % wrap * 0x9E3779B1 % wrap)
        x = mix(x ^ int(kv_positions[b, s]) % wrap * 0x85EBCA77 % wrap)
        keep[b, n, t, s] = x >= int(dropout.rate * wrap)
    return keep


@pytest.fixture(scope="session")
def some_positions() -> Callable[..., Any]:
    """`some_positions(draw, B, length)`: None, or those of the conformance kit."""
    return lambda draw, B, length: draw(st.none() | strategies.positions(B, length))


@pytest.fixture(scope="session")
def some_mask() -> Callable[..., Any]:
    """`some_mask(draw, B, N, T, S, q_positions, kv_positions)`: a mask of the conformance kit, and the booleans `[B, N, T, S]` that it should equal."""

    def mask(draw: Any, B: int, N: int, T: int, S: int, q_positions: Any = None, kv_positions: Any = None) -> Any:
        return draw(strategies.masks(Sizes((B,), T, S, N, N, 1, 1), q_positions, kv_positions))

    return mask
