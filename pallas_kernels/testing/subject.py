"""An attention function, ready to be judged: its compiled programs, and those of the reference."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import attention
from pallas_kernels.testing.calls import Call

Outputs = dict[str, Any]  # "o" [..., T, N, Hv], and where wanted "lse" [..., N, T]

# The largest error allowed, as a share of the largest number in the array.
TOLERANCES = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 2e-2}


class Subject:
    """The programs of one attention function, each compiled once for all calls that are alike but for their arrays.

    Args:
        fn: `fn(q, k, v, **options)`, options those of `pallas_kernels.attention` in use.
            It refuses a call by NotImplementedError, and by not having a keyword for an option.
        tolerances: the largest error allowed by dtype, as a share of the largest number in the array.
    """

    def __init__(self, fn: Callable[..., Any], tolerances: Mapping[str, float] = TOLERANCES) -> None:
        self.tolerances = tolerances
        self._fn = fn
        self._parameters = inspect.signature(fn).parameters
        self.value = jax.jit(self.value_without_jit)
        self.gradients = jax.jit(self._gradients)
        self.value_by_vmap = jax.jit(jax.vmap(self.value_without_jit))
        self.gradients_by_vmap = jax.jit(jax.vmap(self._gradients))

    def value_without_jit(self, call: Call) -> Outputs:
        """o, and lse where the call wants it."""
        unknown = [] if self._takes_all() else [name for name in call.options if name not in self._parameters]
        if unknown:
            raise NotImplementedError(f"has no argument {', '.join(unknown)}")
        out = self._fn(call.q, call.k, call.v, **call.options)
        return dict(zip(("o", "lse"), out)) if call.return_lse else {"o": out}

    def _takes_all(self) -> bool:
        return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in self._parameters.values())

    def _gradients(self, call: Call, cotangents: Outputs) -> dict[str, Any]:
        _, back = jax.vjp(lambda inputs: self.value_without_jit(call.with_inputs(inputs)), call.inputs)
        return {f"gradient of {name}": gradient for name, gradient in back(cotangents)[0].items()}


_REFERENCE = Subject(partial(attention, backend="reference"))


def true_value(call: Call) -> Outputs:
    """o and lse by the reference backend in float32."""
    return _REFERENCE.value(replace(call.astype(jnp.float32), return_lse=True))


def true_gradients(call: Call, cotangents: Outputs) -> dict[str, Any]:
    """The gradients of `call.inputs`, "gradient of q" and so on, by the reference backend in float32."""
    return _REFERENCE.gradients(call.astype(jnp.float32), jax.tree.map(lambda a: a.astype(jnp.float32), cotangents))
