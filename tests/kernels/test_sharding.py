"""On 8 devices attention is what it is on one, and no device asks another for q, k or v.

One process with 8 host devices looks at all cases (the rest of the suite has one device) and prints what it found.
"""

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels import Dropout, attention, masks, scores
from pallas_kernels.flash import backends
from pallas_kernels.flash.backends import reference
from pallas_kernels.flash.request import Request

pytestmark = pytest.mark.slow
BACKENDS = ["blockwise", "reference"]
# Sizes of the mesh, the layout of q, k and v, and the numbers of query and key heads.
MESHES = {
    "batch": ((8,), P("x"), 4, 2),
    "batch and heads": ((2, 4), P("x", None, "y"), 8, 4),
    "heads": ((8,), P(None, None, "x"), 16, 8),
    "heads over two axes": ((2, 4), P(None, None, ("x", "y")), 8, 8),
    "one key head": ((2, 4), P("x", None, "y"), 8, 1),
}
# Layouts that can't be kept.
UNEVEN = {
    "more shards than key heads": ((8,), P(None, None, "x"), 8, 2),
    "half of the shards of heads": ((2, 4), P(None, None, ("x", "y")), 8, 2),
    "lengths": ((2, 4), P("x", "y"), 4, 2),
}
EXPLICIT = ["batch and heads", "one key head"]
B, T, H, Hv = 8, 16, 4, 3
GATHERS = re.compile(r"\b(all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter)(?:-start)?\(")


def numbered(s: Any, i: Any, slope: Any) -> Any:
    return s + slope * (i.k - i.q) + 0.1 * i.batch - 0.2 * jnp.sin(i.head * i.k)


def options(a: dict[str, Any], ids: Any) -> dict[str, Any]:
    """All that a call can have: arrays of every kind of axes, known before the program runs or not, numbers of batch and heads, dropout."""
    known = masks.lengths(np.arange(B) + T - B + 1) | masks.dense(np.arange(T) < 3)
    return {
        "mask": masks.segments(ids) & masks.sliding_window(9, 9) & known & masks.from_function(lambda i: (i.head + i.batch + i.k) % 7 != 0),
        "score": (scores.from_function(numbered, slope=(a["slopes"], "N")), scores.bias(a["bias"]), scores.softcap(2.0), scores.bias(a["row"])),
        "sinks": a["sinks"], "dropout": Dropout(0.3, a["seed"]), "q_positions": np.arange(T)[::-1].copy(), "kv_positions": jnp.arange(T) + ids,
    }  # fmt: skip


def arrays(N: int, K: int) -> tuple[Any, Any, Any, Any]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return rng.normal(size=shape).astype("float32")

    inputs = normal(B, T, N, H), normal(B, T, K, H), normal(B, T, K, Hv)
    learned = {"slopes": normal(N), "bias": normal(1, N, 1, T), "row": normal(B, 1, T, 1), "sinks": normal(N), "seed": np.int32([5])}
    return inputs, learned, np.sort(rng.integers(0, 3, (B, T))), (normal(B, T, N, Hv), normal(B, N, T))


def run(backend: str, inputs: Any, learned: Any, ids: Any, cotangents: Any) -> Any:
    def call(inputs: Any, learned: Any) -> Any:
        return attention(*inputs, **options(learned, ids), backend=backend, return_lse=True)

    out, back = jax.vjp(call, inputs, learned)
    return out, back(cotangents)


def error(actual: Any, expected: Any) -> float:
    """The largest, as a share of the array's largest number."""
    pairs = [(a, b) for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True) if b.dtype != jax.dtypes.float0]
    return max(float(np.abs(np.asarray(a) - b).max() / max(np.abs(b).max(), 1e-3)) for a, b in pairs)


def compared(fn: Any, arguments: Any, expected: Any) -> dict[str, Any]:
    compiled = jax.jit(fn).lower(*arguments).compile()
    out = compiled(*arguments)
    o = jax.tree.leaves(out)[0]
    return {"error": error(out, expected), "collectives": Counter(GATHERS.findall(compiled.as_text())), "share": o.size // o.addressable_shards[0].data.size}


def mesh_of(sizes: tuple[int, ...], kind: AxisType = AxisType.Auto) -> Mesh:
    return Mesh(np.array(jax.devices()).reshape(sizes), ("x", "y")[: len(sizes)], axis_types=(kind,) * len(sizes))


def laid_out(mesh: Mesh, spec: Any, inputs: Any, learned: Any, ids: Any, cotangents: Any) -> Any:
    """q, k, v and o's cotangent as the layout says, what else has batch or heads likewise."""
    batch, heads = spec[0], spec[2] if len(spec) > 2 else None
    keys = spec if inputs[1].shape[2] % math.prod(mesh.shape[m] for m in jax.tree.leaves(heads)) == 0 else P(*spec[:2])
    others = {"slopes": P(heads), "bias": P(None, heads), "row": P(batch), "sinks": P(heads), "seed": P()}
    specs: Any = ((spec, keys, keys), others, P(batch), (spec, P(batch, heads)))
    return jax.device_put((inputs, learned, ids, cotangents), jax.tree.map(lambda s: NamedSharding(mesh, s), specs))


def on_mesh(case: str, backend: str, kind: AxisType = AxisType.Auto) -> Any:
    sizes, spec, N, K = {**MESHES, **UNEVEN}[case]
    arguments = arrays(N, K)
    return compared(partial(run, backend), laid_out(mesh_of(sizes, kind), spec, *arguments), expected_of(backend, N, K))


@cache
def expected_of(backend: str, N: int, K: int) -> Any:
    return jax.tree.map(np.asarray, jax.jit(partial(run, backend))(*arrays(N, K)))


def under_vmap(backend: str, mapped: Any) -> Any:
    """Two calls at once, their axis cut over the mesh axis `mapped`, batch over the other."""
    arguments = jax.tree.map(lambda *a: np.stack(a, 1), *(jax.tree.map(lambda a, n=n: a * (n + 1), arrays(4, 2)) for n in range(2)))
    fn = jax.vmap(partial(run, backend), 1)
    expected = jax.tree.map(np.asarray, jax.jit(fn)(*arguments))
    mesh, batch = mesh_of((2, 4)), P("y", mapped)
    free = {name: P(None, mapped) for name in ("slopes", "bias", "sinks", "seed")}
    specs: Any = ((batch,) * 3, {**free, "row": batch}, batch, (batch, batch))
    return compared(fn, jax.device_put(arguments, jax.tree.map(lambda s: NamedSharding(mesh, s), specs)), expected)


def inside_shard_map(backend: str) -> Any:
    """Each device has a call of its own: batch and heads count within it."""
    arguments = arrays(8, 4)
    fn = partial(own_calls, backend)
    expected = np.concatenate([np.concatenate([jax.jit(fn)(*(a[b : b + 4, :, n * h // 4 : (n + 1) * h // 4] for a, h in zip(arguments[0], (8, 4, 4))))
                                               for n in range(4)], 2) for b in (0, 4)])  # fmt: skip
    mesh, spec = mesh_of((2, 4)), P("x", None, "y")
    return compared(jax.shard_map(fn, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec), jax.device_put(arguments[0], NamedSharding(mesh, spec)), expected)


def own_calls(backend: str, *inputs: Any) -> Any:
    score = scores.from_function(lambda s, i: s + 0.1 * i.batch - 0.2 * jnp.sin(i.head * i.k))
    return jax.grad(lambda *inputs: (attention(*inputs, score=score, dropout=Dropout(0.3, 5), backend=backend) ** 2).sum())(*inputs)


def layers(backend: str, weights: Any, x: Any) -> Any:
    """Two layers by scan with a remat policy. Cut over 8, a projection to two key heads leaves each a quarter of a head: no spec can say so."""

    def layer(x: Any, w: Any) -> Any:
        q, k = jnp.split(x @ w, [8 * H], -1)
        q, k = q.reshape(B, T, 8, H), k.reshape(B, T, 2, H)
        return x + attention(q, k, k, mask=masks.causal(), backend=backend).reshape(x.shape), None

    return jax.value_and_grad(lambda weights, x: (jax.lax.scan(jax.checkpoint(layer), x, weights)[0] ** 2).mean(), (0, 1))(weights, x)


def in_layers(backend: str) -> Any:
    rng = np.random.default_rng(1)
    arguments = tuple(rng.normal(size=shape).astype("float32") / 8 for shape in [(2, 8 * H, 10 * H), (B, T, 8 * H)])
    expected = jax.tree.map(np.asarray, jax.jit(partial(layers, backend))(*arguments))
    mesh = mesh_of((8,))
    shardings = NamedSharding(mesh, P(None, None, "x")), NamedSharding(mesh, P())
    return {**compared(partial(layers, backend), jax.device_put(arguments, shardings), expected), "share": None}


def by_kernel(seen: list[Any]) -> ModuleType:
    """A backend whose forward is a Pallas kernel that holds all it gets; it notes what it gets."""
    backend = ModuleType("backends.kernel")

    def forward(request: Request) -> Any:
        def kernel(*refs: Any) -> None:
            refs[3][...], refs[4][...] = reference.forward(replace(request, **dict(zip("qkv", (ref[...] for ref in refs)))))

        seen.append((request.q.shape, request.k.shape, request.batches.shape, request.heads.shape))
        out = jax.eval_shape(reference.forward, request)
        return pl.pallas_call(kernel, out_shape=out, interpret=True)(request.q, request.k, request.v)

    def backward(request: Request, o: Any, lse: Any, *cotangents: Any) -> Request:
        def call(q: Any, k: Any, v: Any) -> Any:
            return reference.forward(replace(request, q=q, k=k, v=v))

        q, k, v = jax.vjp(call, request.q, request.k, request.v)[1](cotangents)
        return replace(request, q=q, k=k, v=v)

    backend.supports, backend.forward, backend.backward = lambda request: None, forward, backward  # type: ignore[attr-defined]
    return backend


def in_a_kernel() -> Any:
    seen: list[Any] = []
    inputs = arrays(8, 4)[0]

    def fn(*inputs: Any) -> Any:
        return jax.value_and_grad(lambda *inputs: (attention(*inputs, backend="kernel") ** 2).sum(), (0, 1, 2))(*inputs)

    with mock.patch.dict(backends.ORDER, {"cpu": (by_kernel(seen),)}):
        expected = jax.tree.map(np.asarray, jax.jit(fn)(*inputs))
        seen.clear()
        found = compared(fn, jax.device_put(inputs, NamedSharding(mesh_of((2, 4)), P("x", None, "y"))), expected)
    return {**found, "share": None, "seen": seen[-1]}


def look() -> dict[str, Any]:
    found = {}
    for backend in BACKENDS:
        for case in (*MESHES, *UNEVEN):
            found[f"{case}, {backend}"] = on_mesh(case, backend)
        for mapped in (None, "x"):
            found[f"vmap over {mapped}, {backend}"] = under_vmap(backend, mapped)
        found[f"shard_map, {backend}"] = inside_shard_map(backend)
        found[f"layers, {backend}"] = in_layers(backend)
    # The reference is plain jnp, and what that takes on a mesh of explicit axes differs between versions of jax.
    explicit = {f"explicit, {case}, blockwise": on_mesh(case, "blockwise", AxisType.Explicit) for case in EXPLICIT}
    return {**found, **explicit, "kernel": in_a_kernel()}


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment = {**os.environ, **flags, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-W", "error", __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "case", [*(f"{case}, {backend}" for case in (*MESHES, "shard_map") for backend in BACKENDS), *(f"explicit, {case}, blockwise" for case in EXPLICIT)]
)
def test_each_device_has_its_share_and_asks_for_no_other(case: str, found: Any) -> None:
    """o, lse and the gradients of q, k, v, slopes, two biases and sinks, dropout and all."""
    result = found[case]
    assert result["error"] < 2e-6
    assert result["share"] == 8
    assert set(result["collectives"]) <= {"all-reduce"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("mapped", "share"), [(None, 4), ("x", 8)])
def test_vmap_is_cut_too(mapped: Any, share: int, backend: str, found: Any) -> None:
    result = found[f"vmap over {mapped}, {backend}"]
    assert result["error"] < 2e-6
    assert result["share"] == share
    assert set(result["collectives"]) <= {"all-reduce"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [*UNEVEN, "layers"])
def test_what_cannot_be_cut_is_gathered_and_right(case: str, backend: str, found: Any) -> None:
    assert found[f"{case}, {backend}"]["error"] < 2e-6


def test_a_kernel_sees_its_share(found: Any) -> None:
    result = found["kernel"]
    assert result["error"] < 2e-6
    assert set(result["collectives"]) <= {"all-reduce"}  # of the loss
    assert result["seen"] == [[4, T, 2, H], [4, T, 1, H], [4, 1, 1, 1], [1, 2, 1, 1]]


if __name__ == "__main__":
    print(json.dumps(look()))
