"""Compiles the kernels for TPUs that need not be here: `python scripts/compile_kernels.py` (first `pip install --no-deps libtpu`).

Every combination of chip, dtype, head dimension, length and variant is built by the chip's own compiler, forward and backward. A failure is an exit code.
The table of what compiles in pallas_kernels/README.md is written from the results with `--readme`.
"""

import contextlib
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from pallas_kernels import attention, masks, scores
from pallas_kernels.flash.backends.tpu.tiling import choose
from pallas_kernels.flash.request import make_request

README = Path(__file__).parents[1] / "pallas_kernels" / "README.md"
MARKS = "<!-- support: written by scripts/compile_kernels.py -->", "<!-- end of support -->"
CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
B, N, K = 2, 4, 2


def decay(s: Any, i: Any, slope: Any) -> Any:
    """A user's function with an array to learn (KERPLE's logarithmic kernel, arXiv:2205.09921, section 3)."""
    return s - jax.nn.softplus(slope) * jnp.log1p(jnp.abs(i.q - i.k).astype(jnp.float32))


VARIANTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "causal": lambda a: {"mask": masks.causal()},
    "window, softcap": lambda a: {"mask": masks.sliding_window(1024), "score": scores.softcap(50.0)},
    "segments": lambda a: {"mask": masks.causal() & masks.segments(a["ids"])},
    "T5 table": lambda a: {"score": scores.relative_bias(a["table"], bidirectional=True, max_distance=128)},
    "learned function": lambda a: {"mask": masks.causal(), "score": scores.from_function(decay, slope=(a["slope"], "N"))},
}


@dataclass(frozen=True)
class Built:
    """The forward and backward pass of a call, compiled, or why it did not. `kernels` holds each kernel's bytes of on-chip memory."""

    chip: str
    variant: str
    dtype: str
    head_dim: int
    length: int
    tile: tuple[int, int]
    seconds: float
    kernels: dict[str, int]
    error: str = ""


@contextlib.contextmanager
def pretending(device: Any) -> Iterator[None]:
    """Traces as though the device were here."""
    mesh = AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=AbstractDevice(device.device_kind, 1, "tpu"))
    with jax.sharding.use_abstract_mesh(mesh):
        yield


def build(chip: str, variant: str, dtype: str, head_dim: int, length: int) -> Built:
    device = topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[chip]).devices[0]
    here = NamedSharding(Mesh(np.array([device]), ("x",)), PartitionSpec())

    def array(*shape: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=here)

    q, k = array(B, length, N, head_dim, dtype=dtype), array(B, length, K, head_dim, dtype=dtype)
    learned, ids = {"table": array(N, 32), "slope": array(N)}, array(B, length, dtype=jnp.int32)

    def forward(q: Any, k: Any, v: Any, learned: Any, ids: Any) -> Any:
        return attention(q, k, v, backend="tpu", **VARIANTS[variant]({"ids": ids, **learned}))

    def request(q: Any, k: Any, v: Any, learned: Any, ids: Any) -> Any:
        how = {"mask": None, "score": None, **VARIANTS[variant]({"ids": ids, **learned})}
        return make_request(q, k, v, how["mask"], how["score"], None, None, None, None, None)

    def gradients(*args: Any) -> Any:
        return jax.vjp(lambda *floats: forward(*floats, args[-1]), *args[:-1])[1](args[0])

    start = time.perf_counter()
    kernels, error, chosen = {}, "", (0, 0)
    try:
        with pretending(device):
            chosen = choose(jax.eval_shape(request, q, k, k, learned, ids))
            compiled = jax.jit(gradients).trace(q, k, k, learned, ids).lower(lowering_platforms=("tpu",)).compile()
        kernels = on_chip(compiled)
    except Exception as problem:  # whatever a compiler may raise is a row of the table
        error = f"{type(problem).__name__}: {problem}".splitlines()[0]
    return Built(chip, variant, dtype, head_dim, length, chosen, round(time.perf_counter() - start, 1), kernels, error)


def on_chip(compiled: Any) -> dict[str, int]:
    """Bytes of on-chip memory by kernel; none where this jaxlib cannot read the program of a newer compiler."""
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:
        return {}
    found = re.findall(r'%\w*?attention_(\w+?)_*\.\d+ =.*used_scoped_memory_configs":\[\{[^}]*"size":"(\d+)"', text)
    return {name: int(size) for name, size in found}


def table(results: list[Built]) -> str:
    """Markdown: variants down, chips across, each cell the dtypes and head dimensions that compile forward and backward at every length tried."""
    chips = list(dict.fromkeys(r.chip for r in results))
    lines = ["| `tpu` compiles | " + " | ".join(chips) + " |", "|---" * (len(chips) + 1) + "|"]
    for variant in dict.fromkeys(r.variant for r in results):
        cells = [_cell([r for r in results if (r.variant, r.chip) == (variant, chip)]) for chip in chips]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    lengths = ", ".join(f"{n:,}" for n in sorted({r.length for r in results}))
    most = max((size for r in results for size in r.kernels.values()), default=0)
    lines.append(f"\nForward, dQ, dK and dV, at T = S = {lengths}, {N} query and {K} key heads, jax {jax.__version__}; at most {most / 2**20:.1f} MiB of VMEM.")
    return "\n".join(lines)


def _cell(results: list[Built]) -> str:
    texts = []
    for dtype in dict.fromkeys(r.dtype for r in results):
        good = [d for d in sorted({r.head_dim for r in results}) if not any(r.error for r in results if (r.dtype, r.head_dim) == (dtype, d))]
        texts.append(f"{dtype} {', '.join(map(str, good)) or 'none'}")
    return "; ".join(texts)


def main(
    chips: tuple[str, ...] = tuple(CHIPS), variants: tuple[str, ...] = tuple(VARIANTS), dtypes: tuple[str, ...] = ("bfloat16", "float32"),
    head_dims: tuple[int, ...] = (64, 128, 256), lengths: tuple[int, ...] = (4096, 4000), out: str = "", readme: bool = False,
) -> None:  # fmt: skip
    """Compiles every combination, and prints a line for each.

    Args:
        chips: out of v5e, v5p, v6e, tpu7x.
        variants: of masks and scores.
        dtypes: of q, k and v.
        head_dims: of q, k and v.
        lengths: of queries and keys.
        out: a JSON file for the results.
        readme: whether to write the table in pallas_kernels/README.md.
    """
    results = []
    for combination in itertools.product(chips, variants, dtypes, head_dims, lengths):
        results.append(built := build(*combination))
        bytes_ = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in built.kernels.items()) or "compiled, on-chip bytes not readable"
        print(f"{' '.join(map(str, combination))}: tiles {built.tile[0]} x {built.tile[1]}, {built.error or bytes_}, {built.seconds} s", flush=True)
    if out:
        Path(out).write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")
    if readme:
        before, rest = README.read_text().split(MARKS[0])
        README.write_text(f"{before}{MARKS[0]}\n\n{table(results)}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}")
    if failed := sum(bool(r.error) for r in results):
        sys.exit(f"{failed} of {len(results)} did not compile")


if __name__ == "__main__":
    tyro.cli(main)
