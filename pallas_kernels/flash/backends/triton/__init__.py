"""Attention on NVIDIA GPUs from sm_80 on, in Triton, started through jax-triton: built-in masks, combined by `&`, and built-in scores.

On other machines the kernels are interpreted: slow, for tests.

References: Dao et al., arXiv:2205.14135, algorithms 1 and 4; Dao, arXiv:2307.08691, section 3; Tillet et al., doi:10.1145/3315508.3329973.
"""

import importlib.util
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.flash.backends.triton import host
from pallas_kernels.flash.backends.triton.builtin import unknown
from pallas_kernels.flash.backends.triton.shapes import misfit
from pallas_kernels.flash.request import Request, float_arrays, with_float_arrays
from pallas_kernels.flash.tiles import sink_gradients

WIDEST = 256


def supports(request: Request) -> str | None:
    if request.without_tiles:
        return request.without_tiles
    if request.q.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        return f"takes bfloat16, float16 and float32, received {request.q.dtype}"
    if (width := max(request.sizes["H"], request.sizes["Hv"])) > WIDEST:
        return f"takes head dimensions up to {WIDEST}, received {width}"
    return misfit(request) or unknown(request) or _missing() or _too_old()


def _too_old() -> str | None:
    """The name of the GPU here, if it is older than what the kernels are for."""
    if jax.default_backend() != "gpu":
        return None
    device = jax.local_devices()[0]
    return f"needs a GPU of compute capability 8.0 or later, this is {device.device_kind}" if float(device.compute_capability) < 8 else None


def _missing() -> str | None:
    if sys.version_info < (3, 12) or jax.__version_info__ < (0, 11):
        return "needs Python 3.12, jax 0.11 and jax-triton: pip install 'jax[cuda13]>=0.11.2,<0.12' jax-triton"
    return None if importlib.util.find_spec("jax_triton") else "needs jax-triton: pip install jax-triton"


def forward(request: Request) -> tuple[jax.Array, jax.Array]:
    return host.forward(request)


def backward(request: Request, o: jax.Array, lse: jax.Array, do: jax.Array, dlse: jax.Array) -> Request:
    some = lse > -jnp.inf
    delta = jnp.einsum("btnh,btnh->bnt", o, do, preferred_element_type=jnp.float32) - jnp.where(some, dlse, 0)
    arrays = {"q": request.q, "k": request.k, "v": request.v, "do": do, "delta": delta}
    # Rows with nothing allowed: p = 2**(s - inf) = 0.
    arrays["lse"] = jnp.where(some, lse * np.float32(1 / np.log(2)), jnp.inf)
    learned = [(n, a.shape) for n, score in enumerate(request.score) for a in float_arrays((score,))]
    dq, dk, dv, found = host.backward(request, arrays, learned)
    found = [g.astype(a.dtype) for g, a in zip(found, float_arrays(request.score))]
    sinks = None if request.sinks is None else sink_gradients(request.sinks, lse, delta)
    gradient = replace(request, q=dq, k=dk, v=dv, mask=None, sinks=sinks, dropout=None, q_positions=None, kv_positions=None)
    return replace(gradient, score=with_float_arrays(request.score, found))


__all__ = ["backward", "forward", "supports"]
