"""Compiles the kernels for TPUs and GPUs that need not be here: `python scripts/compile_kernels.py --chips h100`.

    pip install --no-deps libtpu                                                  for v5e, v5p, v6e, tpu7x
    pip install --no-deps jax-cuda13-plugin==V jax-cuda13-pjrt==V, V jax's        for the kernels in Pallas on h100, h200 (jax 0.11.2 or later)
    pip install --no-deps triton jax-triton                                       for those in Triton on a100, h100, h200, b200

Every combination of chip, backend, variant, dtype, head dimension and length is built by the chip's own compiler, forward and backward. A kernel that does
not compile, spills registers or has its matrix instructions serialised (C7512) makes the exit code. The tables of what compiles in pallas_kernels/README.md
are written from the results with `--readme`. A variant of your own goes into a file (`--own`):

    def mine(arrays):
        return {"mask": masks.causal(), "score": scores.from_function(my_score, slope=(arrays["slope"], "N"))}

A spill costs speed and no correctness. What a function keeps alive grows with the tile: `"tile": (128, 32)` or `(128, 16)` among hopper's options leaves more
registers for it than the tile chosen for the built-ins.
"""

import contextlib
import functools
import importlib.util
import inspect
import itertools
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "MOSAIC_GPU_DUMP_PTXAS": "1"}

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from pallas_kernels import attention, masks, scores
from pallas_kernels.flash.functions import nearest_name

README = Path(__file__).parents[1] / "pallas_kernels" / "README.md"
MARKS = "<!-- `{}`, written by scripts/compile_kernels.py -->", "<!-- end of `{}` -->"
B, N, K = 2, 4, 2


class Tpu(NamedTuple):
    topology: str
    dtypes: tuple[str, ...] = ("bfloat16", "float32")
    backends: tuple[str, ...] = ("tpu",)


class Gpu(NamedTuple):
    """What the compiler asks of a chip: its name, compute capability, multiprocessors, bytes of shared memory to a block and of memory."""

    name: str
    capability: tuple[int, int]
    processors: int
    shared: int
    memory: int
    dtypes: tuple[str, ...] = ("bfloat16", "float16", "float32")
    backends: tuple[str, ...] = ("triton",)


CHIPS: dict[str, Tpu | Gpu] = {
    "v5e": Tpu("v5e:2x2"),
    "v5p": Tpu("v5p:2x2x1"),
    "v6e": Tpu("v6e:2x2"),
    "tpu7x": Tpu("tpu7x:2x2x1"),
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 166_912, 80 << 30),
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 232_448, 80 << 30, backends=("hopper", "triton")),
    "h200": Gpu("NVIDIA H200", (9, 0), 132, 232_448, 141 << 30, backends=("hopper", "triton")),
    "b200": Gpu("NVIDIA B200", (10, 0), 148, 232_448, 180 << 30),
}


def decay(s: Any, i: Any, slope: Any) -> Any:
    """A user's function with an array to learn (KERPLE's logarithmic kernel, arXiv:2205.09921, section 3)."""
    return s - jax.nn.softplus(slope) * jnp.log1p(jnp.abs(i.q - i.k).astype(jnp.float32))


Variant = Callable[[dict[str, Any]], dict[str, Any]]
VARIANTS: dict[str, Variant] = {
    "causal": lambda a: {"mask": masks.causal()},
    "window, softcap": lambda a: {"mask": masks.sliding_window(1024), "score": scores.softcap(50.0)},
    "segments": lambda a: {"mask": masks.causal() & masks.segments(a["ids"])},
    "ALiBi, sinks": lambda a: {"mask": masks.causal(), "score": scores.alibi(a["slope"]), "sinks": a["slope"]},
    "bias": lambda a: {"score": scores.bias(a["bias"])},
    "T5 table": lambda a: {"score": scores.relative_bias(a["table"], bidirectional=True, max_distance=128)},
    "learned function": lambda a: {"mask": masks.causal(), "score": scores.from_function(decay, slope=(a["slope"], "N"))},
}


@dataclass(frozen=True)
class Kernel:
    """What a compiled kernel takes of a chip: bytes of VMEM or shared memory, bytes of registers spilled, and whether wgmma was serialised."""

    name: str
    memory: int
    spilled: int = 0
    serialised: bool = False


@dataclass(frozen=True)
class Built:
    """The forward and the backward pass of a call, compiled, in so many seconds, or why it did not."""

    chip: str
    backend: str
    variant: str
    dtype: str
    head_dim: int
    length: int
    seconds: tuple[float, float]
    kernels: tuple[Kernel, ...]
    error: str = ""

    @property
    def refused(self) -> bool:
        return self.error.startswith("NotImplementedError: backend")

    @property
    def good(self) -> bool:
        return not self.error and not any(k.spilled or k.serialised for k in self.kernels)

    def __str__(self) -> str:
        found = ", ".join(
            f"{k.name} {k.memory / 1024:.0f} KiB{f', {k.spilled} bytes SPILLED' if k.spilled else ''}{', wgmma SERIALISED' if k.serialised else ''}"
            for k in self.kernels
        )
        words = " ".join(map(str, (self.chip, self.backend, self.variant, self.dtype, self.head_dim, self.length)))
        if self.error:
            return f"{words}: {self.error}"
        return f"{words}: {found or 'compiled, on-chip bytes not readable'}; {self.seconds[0]:.1f} s forward, {self.seconds[1]:.1f} s backward"


def build(chip: str, backend: str, variant: str, options: Variant, dtype: str, head_dim: int, length: int) -> Built:
    def array(*shape: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    q, k = array(B, length, N, head_dim, dtype=dtype), array(B, length, K, head_dim, dtype=dtype)
    learned, ids = {"table": array(N, 32), "slope": array(N), "bias": array(1, 1, length, length)}, array(B, length, dtype=jnp.int32)

    def forward(q: Any, k: Any, v: Any, learned: Any, ids: Any) -> Any:
        return attention(q, k, v, backend=backend, **options({"ids": ids, **learned}))

    def both(*args: Any) -> Any:
        return jax.vjp(lambda *floats: forward(*floats, args[-1]), *args[:-1])[1](args[0])

    compiler = compile_for_tpu if isinstance(CHIPS[chip], Tpu) else compile_by_triton if backend == "triton" else compile_for_gpu
    kernels: list[Kernel] = []
    times, error = [time.perf_counter()], ""
    try:
        for program in (forward, both):
            kernels = compiler(chip, program, q, k, k, learned, ids)
            times.append(time.perf_counter())
    except Exception as problem:  # whatever a compiler may raise is a row of the table
        error = f"{type(problem).__name__}: {str(problem).strip() or 'no reason given'}".splitlines()[0]
    spent = [round(b - a, 1) for a, b in itertools.pairwise(times)] + [0.0, 0.0]
    return Built(chip, backend, variant, dtype, head_dim, length, (spent[0], max(0.0, round(spent[1] - spent[0], 1))), tuple(kernels), error)


@contextlib.contextmanager
def pretending(name: str, platform: str) -> Iterator[None]:
    """Traces as though the device were here."""
    device = AbstractDevice(name, 1 if platform == "tpu" else None, platform)
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device)):
        yield


def compiled_on(device: Any, platform: str, program: Callable[..., Any], *args: Any) -> Any:
    here = NamedSharding(Mesh(np.array([device]), ("x",)), PartitionSpec())
    placed = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), args)
    with pretending(device.device_kind, "tpu" if platform == "tpu" else "gpu"):
        return jax.jit(lambda *args: program(*args)).trace(*placed).lower(lowering_platforms=(platform,)).compile()


def compile_for_tpu(chip: str, program: Callable[..., Any], *args: Any) -> list[Kernel]:
    """No bytes where this jaxlib cannot read the program of a newer compiler."""
    device = topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[chip].topology).devices[0]
    compiled = compiled_on(device, "tpu", program, *args)
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:
        return []
    found = re.findall(r'%\w*?attention_(\w+?)_*\.\d+ =.*used_scoped_memory_configs":\[\{[^}]*"size":"(\d+)"', text)
    return [Kernel(name, int(size)) for name, size in found]


def compile_for_gpu(chip: str, program: Callable[..., Any], *args: Any) -> list[Kernel]:
    """Spills and serialisation by ptxas' own report, shared memory by the buffers that a kernel asks for."""
    from pallas_kernels.flash.backends.hopper import launch

    asked: dict[str, int] = {}
    run = launch.Launch.run

    def noted(self: Any, body: Any, name: str, grid: Any, scalars: Any, inputs: Any, outputs: Any, smem: Any, barriers: Any) -> Any:
        asked[name] = launch.bytes_of(smem)
        return run(self, body, name, grid, scalars, inputs, outputs, smem, barriers)

    launch.Launch.run = noted  # type: ignore[method-assign]
    try:
        with printed() as report:
            compiled_on(gpu(chip), "cuda", program, *args)
    finally:
        launch.Launch.run = run  # type: ignore[method-assign]
    kernels = []
    for part in report[0].split("Compiling entry function")[1:]:
        (name,) = re.findall(r"Function properties for (\w+?)_mosaic", part)
        spilled = sum(map(int, re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part).groups()))  # type: ignore[union-attr]
        kernels.append(Kernel(name.removeprefix("attention_"), asked[name], spilled, False))
    return [Kernel(k.name, k.memory, k.spilled, "C7512" in report[0]) for k in kernels]


def gpu(chip: str) -> Any:
    """A device to compile for. What the kernels' compiler does not read is as on an H100."""
    about = CHIPS[chip]
    target = f"""
        gpu_device_info {{
            threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 fpus_per_core: 128
            shared_memory_per_block: 49152 shared_memory_per_block_optin: {about.shared} shared_memory_per_core: {about.shared + 1024}
            core_count: {about.processors} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
            memory_bandwidth: 3352000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: {about.memory}
            cuda_compute_capability {{ major: {about.capability[0]} minor: {about.capability[1]} }}
            registers_per_core_limit: 65536 registers_per_block_limit: 65536
        }}
        platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 12 }} runtime_version {{ major: 13 minor: 0 }}
        device_description_str: "{about.name}"
    """
    with printed():  # plugins that find no driver say so
        jax.devices()
        from jax._src import xla_bridge  # there is no public way to make a compile-only client for a platform that is not here

        if "cuda" not in xla_bridge._topology_factories:
            xla_bridge.discover_pjrt_plugins()
        return topologies.get_topology_desc(platform="cuda", target_config=target, topology="1x1x1").devices[0]


@contextlib.contextmanager
def printed() -> Iterator[list[str]]:
    """What the compilers, which are no Python, print meanwhile."""
    import ctypes

    flush, texts = ctypes.CDLL(None).fflush, [""]
    with tempfile.TemporaryFile() as file:
        sys.stdout.flush()
        saved = [(fd, os.dup(fd)) for fd in (1, 2)]
        for fd, _ in saved:
            os.dup2(file.fileno(), fd)
        try:
            yield texts
        finally:
            flush(None)
            for fd, old in saved:
                os.dup2(old, fd)
                os.close(old)
            file.seek(0)
            texts[0] = file.read().decode(errors="replace")


def compile_by_triton(chip: str, program: Callable[..., Any], *args: Any) -> list[Kernel]:
    from pallas_kernels.flash.backends.triton import compiling

    major, minor = CHIPS[chip].capability
    kernels = [Kernel(k.kernel.removeprefix("attention_"), k.shared, k.spilled) for k in compiling.build(program, *args, capability=10 * major + minor)]
    if over := [k.name for k in kernels if k.memory > CHIPS[chip].shared]:
        raise ValueError(f"{', '.join(over)}: more shared memory than the {CHIPS[chip].shared} bytes of a block")
    return kernels


def table(backend: str, results: list[Built]) -> str:
    """Markdown: variants down, chips across, each cell the dtypes and head dimensions that compile both ways at every length tried."""
    chips = list(dict.fromkeys(r.chip for r in results))
    lines = [f"| `{backend}` compiles | " + " | ".join(chips) + " |", "|---" * (len(chips) + 1) + "|"]
    for variant in dict.fromkeys(r.variant for r in results):
        cells = [_cell([r for r in results if (r.variant, r.chip) == (variant, chip)]) for chip in chips]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    lengths = ", ".join(f"{n:,}" for n in sorted({r.length for r in results}))
    most = max((k.memory for r in results for k in r.kernels), default=0)
    memory = f"{most / 2**20:.1f} MiB of VMEM" if backend == "tpu" else f"{most / 2**10:.0f} KiB of shared memory, no register spilled"
    memory += ", no wgmma serialised" if backend == "hopper" else ""
    lines.append(f"\nForward and backward at T = S = {lengths}, {N} query and {K} key heads, jax {jax.__version__}; at most {memory}.")
    return "\n".join(lines)


def _cell(results: list[Built]) -> str:
    if all(r.refused for r in results):
        return "refused"
    texts = []
    for dtype in dict.fromkeys(r.dtype for r in results):
        good = [d for d in sorted({r.head_dim for r in results}) if all(r.good for r in results if (r.dtype, r.head_dim) == (dtype, d))]
        texts.append(f"{dtype} {', '.join(map(str, good)) or 'none'}")
    return "; ".join(texts)


def write_table(backend: str, results: list[Built]) -> None:
    """In place of the backend's last."""
    start, end = (mark.format(backend) for mark in MARKS)
    before, rest = README.read_text().split(start)
    README.write_text(f"{before}{start}\n\n{table(backend, results)}\n\n{end}{rest.split(end)[1]}")


def _own(path: str) -> dict[str, Variant]:
    """The public functions of a file, by name."""
    if not path:
        return {}
    spec = importlib.util.spec_from_file_location("own_variants", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        sys.exit(f"--own: expected a Python file, received {path!r}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a file may do
        sys.exit(f"--own: {path}: {type(error).__name__}: {error}")
    functions = inspect.getmembers(module, lambda x: inspect.isfunction(x) and x.__module__ == "own_variants")
    found = {name: f for name, f in functions if not name.startswith("_") and [*inspect.signature(f).parameters] == ["arrays"]}
    if not found:
        sys.exit(f"--own: expected a function of one argument, 'arrays', in {path!r}, found none")
    return {name: functools.partial(_checked, name, f) for name, f in found.items()}


def _checked(name: str, variant: Variant, arrays: dict[str, Any]) -> dict[str, Any]:
    try:
        options = variant(arrays)
    except KeyError as error:
        raise KeyError(f"{name}: expected one of {', '.join(arrays)}, received {error}") from None
    if not isinstance(options, dict):
        raise TypeError(f"{name}: expected a dict of options of attention, such as {{'score': ...}}, received {type(options).__name__}")
    return options


def _named(flag: str, wanted: tuple[str, ...], known: Any) -> None:
    for name in wanted:
        if name not in known:
            sys.exit(f"--{flag}: expected names out of {', '.join(map(repr, known))}, received {name!r}{nearest_name(name, known)}")


def _installed(chips: tuple[str, ...], backends: tuple[str, ...]) -> None:
    """Ends where the compiler of a chip is missing."""
    for chip in chips:
        try:
            if isinstance(CHIPS[chip], Tpu) and "tpu" in backends:
                topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[chip].topology)
            elif isinstance(CHIPS[chip], Gpu) and "hopper" in backends and "hopper" in CHIPS[chip].backends:
                gpu(chip)
        except Exception as error:
            wheels = "libtpu" if isinstance(CHIPS[chip], Tpu) else f"jax-cuda13-plugin=={jax.__version__} jax-cuda13-pjrt=={jax.__version__}"
            text = str(error).partition("\n")[0]
            sys.exit(f"--chips {chip}: no compiler for it here ({text}); pip install --no-deps --target compilers {wheels}, then PYTHONPATH=compilers")


def main(
    chips: tuple[str, ...] = ("v5e", "v5p", "v6e", "tpu7x"), backends: tuple[str, ...] = ("tpu", "hopper", "triton"),
    variants: tuple[str, ...] = (), dtypes: tuple[str, ...] = ("bfloat16", "float16", "float32"), head_dims: tuple[int, ...] = (64, 128, 256),
    lengths: tuple[int, ...] = (4096, 4000), own: str = "", out: str = "", readme: bool = False,
) -> None:  # fmt: skip
    """Compiles every combination, and prints a line for each. What a backend refuses is no failure.

    Args:
        chips: out of v5e, v5p, v6e, tpu7x, a100, h100, h200, b200.
        backends: out of tpu, hopper, triton.
        variants: of masks and scores; all unless given, or those of `own`.
        dtypes: of q, k and v.
        head_dims: of q, k and v.
        lengths: of queries and keys.
        own: a Python file of functions that take the dict `arrays` ("ids" int32 [B, T], "slope" [N], "table" [N, 32], "bias" [1, 1, T, S]) and return
            options of `attention`: variants too.
        out: a JSON file for the results.
        readme: whether to write the tables in pallas_kernels/README.md.
    """
    mine = _own(own)
    known = VARIANTS | mine
    for flag, wanted, names in (("chips", chips, CHIPS), ("backends", backends, ("tpu", "hopper", "triton")), ("variants", variants, known)):
        _named(flag, wanted, names)
    _named("dtypes", dtypes, ("bfloat16", "float16", "float32"))
    _installed(chips, backends)
    results = []
    for chip, backend, variant, dtype, head_dim, length in itertools.product(chips, backends, variants or mine or VARIANTS, dtypes, head_dims, lengths):
        if backend not in CHIPS[chip].backends or dtype not in CHIPS[chip].dtypes or (backend == "hopper" and dtype == "float32"):
            continue
        results.append(build(chip, backend, variant, known[variant], dtype, head_dim, length))
        print(results[-1], flush=True)
    if not results:
        sys.exit("nothing to compile: " + "; ".join(f"{chip} has {', '.join(CHIPS[chip].backends)} in {', '.join(CHIPS[chip].dtypes)}" for chip in chips))
    if out:
        Path(out).write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")
    for backend in dict.fromkeys(r.backend for r in results if readme):
        write_table(backend, [r for r in results if r.backend == backend])
    if failed := sum(not r.good and not r.refused for r in results):
        sys.exit(f"{failed} of {len(results)} did not compile, spilled registers or were serialised; see the head of this script for what helps")


if __name__ == "__main__":
    tyro.cli(main)
