"""Backends, in the order in which `auto` tries them on each platform.

A backend is a module with

- `supports(request) -> None | str`: None where it can serve the request, otherwise why not;
- `forward(request) -> (o [B, T, N, Hv], lse [B, N, T])`;
- `remark(request) -> None | str`, if it has any: what it does to a request that a user may want to know;
- `backward(request, o, lse, do, dlse) -> Request` holding the gradients, None where there is none; without it JAX differentiates `forward`.
"""

from types import ModuleType

from pallas_kernels.flash.backends import blockwise, hopper, reference, tpu, triton

_EVERYWHERE = (blockwise, reference)

ORDER: dict[str, tuple[ModuleType, ...]] = {"cpu": _EVERYWHERE, "gpu": (hopper, triton, *_EVERYWHERE), "tpu": (tpu, *_EVERYWHERE)}


def name(backend: ModuleType) -> str:
    return backend.__name__.rpartition(".")[2]
