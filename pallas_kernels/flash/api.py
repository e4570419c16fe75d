"""`attention`, and `explain`, which says who would serve a call."""

from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.flash import backends
from pallas_kernels.flash.functions import nearest_name
from pallas_kernels.flash.platform import made_for
from pallas_kernels.flash.request import Dropout, Request, make_request
from pallas_kernels.flash.sharding import partitioned


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: Any = None,
    score: Any = None,
    scale: float | None = None,
    sinks: Any = None,
    dropout: Dropout | None = None,
    q_positions: Any = None,
    kv_positions: Any = None,
    backend: str = "auto",
    tile: tuple[int, int] | None = None,
    return_lse: bool = False,
) -> Any:
    """Scaled dot-product attention with any mask and score.

        s = score(scale * q.k)    p = softmax over the allowed keys, and the sink    o = dropout(p).v

    A row with nothing allowed gives 0 (lse: -inf, with a sink the sink's logit), never NaN. s, p and lse are float32, float64 if the inputs are.
    q, k and v must be finite, where they are masked too: 0 * NaN is NaN.

    Args:
        q: `[..., T, N, H]`, floats. Leading dimensions, any number of them, count as one flattened B.
        k: `[..., S, K, H]`, N a multiple of K: head n of q reads head n // (N / K) of k.
        v: `[..., S, K, Hv]`.
        mask: one of `masks`, a boolean array broadcastable to `[B, N, T, S]`, or a function `fn(i) -> bool`.
        score: one of `scores`, a function `fn(s, i)`, or a tuple of them, applied in order.
        scale: a Python number; H**-0.5 unless given.
        sinks: `[N]`, one more logit per query head in the softmax's sum, without a value (gpt-oss, arXiv:2508.10925, section 2).
        dropout: `Dropout(rate, seed)` of the probabilities; the same seed drops the same ones in every backend.
        q_positions: integers `[T]` or `[B, T]`; 0, 1, 2, ... unless given.
        kv_positions: integers `[S]` or `[B, S]`; 0, 1, 2, ... unless given.
        backend: a name, or "auto" for the first that takes the call (see `explain`).
        tile: queries and keys to a tile; the backend chooses unless given. It changes speed and memory, and results by rounding alone.
        return_lse: whether to return `(o, lse)`.

    Returns:
        o `[..., T, N, Hv]` in q's dtype; with `return_lse` also lse `[..., N, T]`, natural log, sinks included, before dropout, differentiable.

    Forward-mode and higher derivatives: `backend="reference"`. Reverse mode, vmap and vmap of grad: all.

    Raises:
        TypeError, ValueError: bad arguments. NotImplementedError: the named backend cannot take the call; the message says why.

    References: Vaswani et al., arXiv:1706.03762, section 3.2.1; Dao et al., arXiv:2205.14135.
    """
    request = make_request(q, k, v, mask, score, scale, sinks, dropout, q_positions, kv_positions, tile)
    o, lse = _run(_choose(request, backend), request)
    lead = jnp.shape(q)[:-3]
    o, lse = o.reshape(*lead, *o.shape[1:]), lse.reshape(*lead, *lse.shape[1:])
    return (o, lse) if return_lse else o


@dataclass(frozen=True)
class Explanation:
    """Backends in the order tried, each with the reason why it refuses, or None.

    `remarks` has what a backend that takes the call does to it first, by name.
    """

    platform: str
    reasons: tuple[tuple[str, str | None], ...]
    remarks: tuple[tuple[str, str], ...] = ()

    @property
    def chosen(self) -> str:
        """The backend that "auto" takes; "none" where there is none."""
        return next((name for name, reason in self.reasons if reason is None), "none")

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.reasons)
        lines = [f"attention on {self.platform}:"]
        for name, reason in self.reasons:
            verdict = reason or ("chosen" if name == self.chosen else "could")
            remark = dict(self.remarks).get(name)
            lines.append(f"  {name:{width}}  {verdict}{f'; {remark}' if remark else ''}")
        return "\n".join(lines)

    __repr__ = __str__


def explain(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: Any = None,
    score: Any = None,
    scale: float | None = None,
    sinks: Any = None,
    dropout: Dropout | None = None,
    q_positions: Any = None,
    kv_positions: Any = None,
    tile: tuple[int, int] | None = None,
    platform: str | None = None,
) -> Explanation:
    """Which backends would take a call of `attention`, and why the others would not.

    Args:
        platform: "cpu", "gpu" or "tpu"; unless given that of the abstract mesh in use, otherwise of the default device.

    Returns:
        An `Explanation`, which prints as a table.
    """
    request = make_request(q, k, v, mask, score, scale, sinks, dropout, q_positions, kv_positions, tile)
    platform = platform or made_for()
    reasons = tuple((b, b.supports(request)) for b in _order(platform))
    remarks = ((b, b.remark(request)) for b, reason in reasons if reason is None and hasattr(b, "remark"))
    named = tuple((backends.name(b), reason) for b, reason in reasons)
    return Explanation(platform, named, tuple((backends.name(b), remark) for b, remark in remarks if remark))


def _order(platform: str) -> tuple[ModuleType, ...]:
    platform = {"cuda": "gpu", "rocm": "gpu"}.get(platform, platform)
    if platform not in backends.ORDER:
        raise ValueError(f"platform: expected one of {', '.join(backends.ORDER)}, received {platform!r}")
    return backends.ORDER[platform]


def _choose(request: Request, wanted: str) -> ModuleType:
    order = _order(made_for())
    if wanted == "auto":
        if taker := next((b for b in order if b.supports(request) is None), None):
            return taker
        reasons = "; ".join(f"{backends.name(b)} {b.supports(request)}" for b in order)
        raise NotImplementedError(f"backend 'auto': no backend takes the call: {reasons}")
    every = {backends.name(b): b for platform in backends.ORDER.values() for b in platform}
    if wanted not in every:
        raise ValueError(f"backend: expected one of auto, {', '.join(every)}, received {wanted!r}{nearest_name(wanted, every)}")
    reason = every[wanted].supports(request)
    if reason is not None:
        raise NotImplementedError(f"backend {wanted!r}: {reason}")
    return every[wanted]


def _run(backend: ModuleType, request: Request) -> tuple[jax.Array, jax.Array]:
    if not hasattr(backend, "backward"):
        return backend.forward(request)
    # Arrays of numpy stay outside, where no transformation makes tracers of them: a backend may look into them before the program runs.
    known = jax.tree.map(lambda a: None if isinstance(a, jax.Array) else a, request)
    arrays = jax.tree.map(lambda a: a if isinstance(a, jax.Array) else None, request)
    return _with_own_backward(backend, known, arrays)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _with_own_backward(backend: ModuleType, known: Request, arrays: Request) -> tuple[jax.Array, jax.Array]:
    return partitioned(backend.forward, _joined(known, arrays))


def _forward(backend: ModuleType, known: Request, arrays: Request) -> tuple[Any, Any]:
    o, lse = partitioned(backend.forward, _joined(known, arrays))
    return (o, lse), (arrays, o, lse)


def _backward(backend: ModuleType, known: Request, saved: Any, cotangents: Any) -> tuple[Request]:
    arrays, o, lse = saved

    def gradients(request: Request, *others: jax.Array) -> Request:
        found = backend.backward(request, *others)
        score = jax.tree.map(lambda a, g: g if _is_float(a) else None, arrays.score, found.score, is_leaf=_is_none)
        return replace(jax.tree.map(lambda _: None, arrays), q=found.q, k=found.k, v=found.v, sinks=found.sinks, score=score)

    return (partitioned(gradients, _joined(known, arrays), o, lse, *cotangents),)


def _joined(known: Request, arrays: Request) -> Request:
    return jax.tree.map(lambda a, b: b if a is None else a, known, arrays, is_leaf=_is_none)


def _is_none(a: Any) -> bool:
    return a is None


def _is_float(a: Any) -> bool:
    return a is not None and jnp.issubdtype(a.dtype, jnp.floating)


_with_own_backward.defvjp(_forward, _backward)
