"""The host's side of the kernels: what they are handed, and how they are started.

On a GPU jax-triton hands a kernel to XLA. Where TRITON_INTERPRET=1 was in the environment before Triton was imported, Triton's interpreter runs it on numpy
arrays: slow, for tests.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.flash.backends.triton.builtin import specs
from pallas_kernels.flash.backends.triton.constants import Constants, Dropped, Read
from pallas_kernels.flash.lists import Visits
from pallas_kernels.flash.platform import made_for
from pallas_kernels.flash.request import Request
from pallas_kernels.flash.tiled import Scalars, Tiled

OPTIONS = {
    "enable_fp_fusion": True,
    "ptx_version": 87,  # XLA's assembler is older than Triton's; that of CUDA 12.8 knows every chip here
    "maxnreg": 255,  # or the assembler spills a little so that more programs fit on a chip's core
}


class Shape(NamedTuple):
    """A kernel's tile and what Triton is to make of it."""

    queries: int
    keys: int
    warps: int
    stages: int


class Launch(Tiled):
    """A request cut into tiles for one kernel."""

    def __init__(self, request: Request, shape: Shape) -> None:
        super().__init__(request, (shape.queries, shape.keys))
        self.shape = shape
        sizes, first = request.sizes, len(Scalars._fields)
        read = jax.tree.unflatten(self.structure, [Read(first + n, tuple(m > 1 for m in np.shape(a)[:4])) for n, a in enumerate(self.leaves)])
        mask, score = specs(read["mask"], read["scores"])
        dropout = request.dropout
        self.constants = Constants(
            masks=mask,
            scores=score,
            dropout=None if dropout is None else Dropped(dropout.num_heads or self.N, int(dropout.rate * 2**32), 1 / (1 - dropout.rate)),
            positions=(read["q"], read["k"]),
            ragged=self.ragged,
            steps=(math.gcd(self.T, 16), math.gcd(self.S, 16)),
            listed=(False, False),
            scale=request.scale,
            **{name: sizes[name] for name in "NKGH"},
            V=sizes["Hv"],
            HP=padded(sizes["H"]),
            VP=padded(sizes["Hv"]),
            BQ=shape.queries,
            BK=shape.keys,
        )

    def reads(self, lists: Visits) -> tuple[jax.Array, ...]:
        """What masks and scores read, as it lies in memory."""
        return *self.scalars(lists), *(_stored(a) for a in self.leaves)

    def run(self, kernel: Any, programs: int, lists: Visits, arrays: Mapping[str, Any], out: Mapping[str, Any], **more: Any) -> tuple[jax.Array, ...]:
        """The outputs of a kernel, of which `out` has the shapes and dtypes by name.

        Args:
            programs: how many to start.
            arrays: the kernel's, by name, beside `reads`.
            more: further parameters, numbers.
        """
        constants = self.constants._replace(listed=tuple(n > 1 for n in np.shape(lists.full)[:2]))
        numbers = {"T": self.T, "S": self.S, "C": constants, **more}
        start = _interpret if _interpreted() else _start
        reads = self.reads(lists)

        def call(arrays: dict[str, Any], reads: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            return start(kernel, programs, {**arrays, "reads": reads}, dict(out), numbers, self.shape)

        return jax.custom_batching.sequential_vmap(call)(dict(arrays), reads)  # neither way knows vmap


def _interpreted() -> bool:
    import triton

    if triton.knobs.runtime.interpret:
        return True
    if made_for() != "gpu":
        raise NotImplementedError("backend 'triton': elsewhere than on a GPU it is interpreted, for tests: set TRITON_INTERPRET=1 before Python starts")
    return False


def padded(width: int) -> int:
    """The power of two that a row is lengthened to in a tile, at least the 16 that tensor cores multiply."""
    return max(16, 1 << (width - 1).bit_length())


def _stored(a: Any) -> jax.Array:
    a = jnp.asarray(a)
    if a.dtype == jnp.bool_:
        return a.astype(jnp.int8)
    return a.astype(jnp.float32) if a.dtype == jnp.float64 else a


def _start(kernel: Any, programs: int, arrays: dict[str, Any], out: dict[str, Any], numbers: dict[str, Any], shape: Shape) -> tuple[jax.Array, ...]:
    import jax_triton

    return jax_triton.triton_call(
        **arrays, kernel=kernel, out_type=tuple(out.values()), grid=(programs,), name=kernel.fn.__name__, num_warps=shape.warps, num_stages=shape.stages,
        backend_options=OPTIONS, **numbers,
    )  # fmt: skip


def _interpret(kernel: Any, programs: int, arrays: dict[str, Any], out: dict[str, Any], numbers: dict[str, Any], shape: Shape) -> tuple[jax.Array, ...]:
    def run(arrays: dict[str, Any]) -> tuple[np.ndarray, ...]:
        # Beyond what a kernel writes there may be anything.
        results = {name: np.full(a.shape, np.nan if jnp.issubdtype(a.dtype, jnp.floating) else -1, a.dtype) for name, a in out.items()}
        tensors = jax.tree.map(lambda a: _Tensor(np.array(a)), {**arrays, **results}, is_leaf=lambda a: hasattr(a, "shape"))
        with np.errstate(all="ignore"):  # 2**x overflows where a mask is about to hide it
            kernel[(programs,)](**tensors, **numbers)
        return tuple(tensors[name].array for name in out)

    return jax.pure_callback(run, tuple(out.values()), arrays, vmap_method="sequential")


_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "int32": "i32", "int8": "i8"}


class _Tensor:
    """What Triton's interpreter asks of a tensor, on an array of numpy."""

    def __init__(self, array: Any) -> None:
        self.array = array

    @property
    def dtype(self) -> str:
        return _NAMES[self.array.dtype.name]

    def data_ptr(self) -> int:
        return int(self.array.ctypes.data)

    def new_empty(self, size: int, device: str) -> "_Tensor":
        return _Tensor(None)

    def set_(self, storage: "_Tensor", *_: Any) -> None:
        self.array = storage.array

    def untyped_storage(self) -> "_Tensor":
        return self

    def cpu(self) -> "_Tensor":
        return self

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    def stride(self) -> tuple[int, ...]:
        return tuple(step // self.array.itemsize for step in self.array.strides)

    def copy_(self, other: "_Tensor") -> None:
        """The interpreter wrote where this lies."""
