"""Builds the kernels of a program for GPUs that need not be here, by Triton's own compiler and ptxas: what they take of a chip."""

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType


@dataclass(frozen=True)
class Built:
    """A kernel as ptxas built it: seconds from its source to machine code, registers a thread, bytes spilled, bytes of shared memory a program."""

    kernel: str
    seconds: float
    registers: int
    spilled: int
    shared: int


def build(function: Callable[..., Any], *args: Any, capability: int) -> list[Built]:
    """Every kernel that `function(*args)` starts, once each.

    Args:
        function: calls `attention(backend="triton")`, its derivative perhaps.
        args: arrays or `jax.ShapeDtypeStruct`s.
        capability: of the GPU: 80 for an A100, 90 for an H100, 100 for a B200.

    Raises:
        what Triton does where a kernel does not compile; subprocess.CalledProcessError where ptxas does not take it.
    """
    mesh = AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=AbstractDevice("a GPU", None, "gpu"))
    with jax.sharding.use_abstract_mesh(mesh):
        program = jax.make_jaxpr(lambda *args: function(*args))(*args)
    sources: dict[Any, Any] = {}
    for call in _calls(program.jaxpr):
        source, options = _source(call)
        sources.setdefault((source.hash(), tuple(sorted(options.items()))), (source, options))
    return [_build(source, options, capability) for source, options in sources.values()]


def _calls(jaxpr: Any) -> Iterator[Any]:
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "triton_kernel_call":
            yield eqn
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            if hasattr(getattr(inner, "jaxpr", inner), "eqns"):
                yield from _calls(getattr(inner, "jaxpr", inner))


def _source(call: Any) -> tuple[Any, dict[str, Any]]:
    """What jax-triton hands to Triton's compiler when it lowers a call, and the options."""
    from jax_triton.triton_lib import get_type_id
    from triton.compiler import ASTSource

    kernel, out = call.params["fn"], call.params["out_shapes"]

    def is_leaf(x: Any) -> bool:
        return hasattr(x, "value") or hasattr(x, "ordinal")

    def operand(x: Any) -> Any:
        """An array, or the value of a number."""
        if hasattr(x, "ordinal"):
            return jax.core.ShapedArray(out[x.ordinal].shape, out[x.ordinal].dtype)
        return x.value if hasattr(x, "value") else x

    operands = jax.tree.map(operand, call.params["in_tree"].unflatten([v.aval for v in call.invars]), is_leaf=is_leaf)
    names = [p.name for p in kernel.params if not p.is_constexpr]
    places, _ = jax.tree_util.tree_flatten_with_path(operands)
    constants = dict(call.params["metaparams"]) | {name: 1 for name, x in zip(names, operands) if isinstance(x, int) and x == 1}
    types = {name: jax.tree.map(get_type_id, x) for name, x in zip(names, operands)} | dict.fromkeys(constants, "constexpr")
    aligned = {tuple(key.idx for key in path): [["tt.divisibility", 16]] for path, x in places if hasattr(x, "shape")}
    return ASTSource(kernel, types, constants, aligned), dict(call.params["backend_options"])


def _build(source: Any, options: dict[str, Any], capability: int) -> Built:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, triton.knobs.cache.scope():
        triton.knobs.cache.dir = folder  # or what was built before is not built again
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        seconds = time.perf_counter() - start
        (path := Path(folder) / "kernel.ptx").write_text(compiled.asm["ptx"])
        (target,) = re.findall(r"^\.target (\w+)", compiled.asm["ptx"], re.MULTILINE)
        command = [get_ptxas(capability).path, "-v", f"--gpu-name={target}", str(path), "-o", os.devnull]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    (registers,) = re.findall(r"Used (\d+) registers", report)
    spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", report))
    return Built(compiled.metadata.name, round(seconds, 2), int(registers), spilled, compiled.metadata.shared)
