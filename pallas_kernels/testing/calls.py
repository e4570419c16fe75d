"""A call of attention as one value: what the random cases make and the judges run."""

from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import Dropout
from pallas_kernels.flash.masks import Mask
from pallas_kernels.flash.request import float_arrays, make_request, with_float_arrays
from pallas_kernels.flash.scores import Score


class Sizes(NamedTuple):
    """q `[*lead, T, N, H]`, k `[*lead, S, K, H]`, v `[*lead, S, K, Hv]`."""

    lead: tuple[int, ...]
    T: int
    S: int
    N: int
    K: int
    H: int
    Hv: int

    @property
    def B(self) -> int:
        """The product of the leading dimensions."""
        return int(np.prod(self.lead))

    def of(self, axes: str) -> tuple[int, ...]:
        """Lengths of axes by their letters: `sizes.of("BT")`."""
        return tuple(getattr(self, axis) for axis in axes)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Call:
    """The arguments of `pallas_kernels.attention`, `backend` apart; a pytree, so that calls alike but for their arrays share a compiled program."""

    q: Any
    k: Any
    v: Any
    mask: Mask | None = None
    score: tuple[Score, ...] | None = None
    sinks: Any = None
    dropout: Dropout | None = None
    q_positions: Any = None
    kv_positions: Any = None
    scale: float | None = field(default=None, metadata={"static": True})
    return_lse: bool = field(default=False, metadata={"static": True})

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments in use, so that a function needs to know no others."""
        named = {f.name: getattr(self, f.name) for f in fields(self)[3:]}
        return {name: value for name, value in named.items() if value is not None and value is not False}

    @property
    def inputs(self) -> dict[str, Any]:
        """The arrays that have gradients."""
        arrays = {"q": self.q, "k": self.k, "v": self.v, "score's array": float_arrays(self.score or ()), "sinks": self.sinks}
        return {name: array for name, array in arrays.items() if array is not None}

    def with_inputs(self, inputs: dict[str, Any]) -> "Call":
        """The same call with other such arrays."""
        score = with_float_arrays(self.score or (), inputs["score's array"])
        return replace(self, q=inputs["q"], k=inputs["k"], v=inputs["v"], score=score or None, sinks=inputs.get("sinks"))

    def astype(self, dtype: Any) -> "Call":
        """The same call with q, k and v in another dtype."""
        return replace(self, q=self.q.astype(dtype), k=self.k.astype(dtype), v=self.v.astype(dtype))

    def __str__(self) -> str:
        """The case in words: dtype, shapes, and the options in use, arrays by their shapes."""
        arrays = ", ".join(f"{name} {list(np.shape(getattr(self, name)))}" for name in "qkv")
        return f"{jnp.result_type(self.q)} {arrays}" + "".join(f", {name}={_in_words(value)}" for name, value in self.options.items())


def _in_words(value: Any) -> str:
    return f"{jnp.result_type(value)}{list(value.shape)}" if hasattr(value, "shape") else str(value)


def mask_as_booleans(q: Any, k: Any, mask: Any, q_positions: Any = None, kv_positions: Any = None) -> jax.Array:
    """A mask of `pallas_kernels` as booleans `[B, N, T, S]`: what an attention function takes that knows no other masks.

    Args:
        q: `[..., T, N, H]`.
        k: `[..., S, K, H]`.
        mask: as in `pallas_kernels.attention`; None allows everything.
        q_positions: integers `[T]` or `[B, T]`.
        kv_positions: integers `[S]` or `[B, S]`.
    """
    request = make_request(q, k, k, mask, None, None, None, None, q_positions, kv_positions)
    allowed = True if request.mask is None else request.mask.allowed(request.index())
    return jnp.broadcast_to(allowed, [request.sizes[axis] for axis in "BNTS"])
