"""The Triton kernels, interpreted: they pass the conformance kit, or refuse in words."""

import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

if jax.default_backend() == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported for the first time

from pallas_kernels import Dropout, attention, masks, scores
from pallas_kernels.flash.backends import triton as backend
from pallas_kernels.flash.request import make_request
from pallas_kernels.testing import CHECKS, check_attention

TILE = (32, 16)
tiled = partial(attention, backend="triton", tile=TILE)
needs_triton = pytest.mark.skipif(backend._missing() is not None, reason=str(backend._missing()))

REFUSALS = ("knows no mask", "knows no score", "takes masks that are combined by & alone")


@needs_triton
@pytest.mark.parametrize("checks", [("grouped_heads", "positions", "dropout"), ("lse_of_empty_rows",), ("vmap_of_gradients", "together_gradients")])
def test_passes(checks: tuple[str, ...]) -> None:
    assert not check_attention(tiled, checks=checks, seeds=1, lengths=((5, 11), (37, 43))).refused


REFUSED = {"masks", "scores", "mask_gradients", "score_gradients", "empty_rows", "lse_of_empty_rows", "empty_rows_with_sinks", "empty_rows_gradients"}


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_passes_everything(check: str) -> None:
    (result,) = check_attention(tiled, checks=(check,), seeds=2).results
    assert all(reason.removeprefix("backend 'triton': ").startswith(REFUSALS) for reason in result.refusals)
    assert result.passed and (check in REFUSED or not result.refusals)


T, S, N, K = 37, 45, 4, 2

ARRAYS = {
    "alibi": lambda a: scores.alibi(a["slopes"]),
    "softcap, alibi, softcap, alibi": lambda a: (scores.softcap(3.0), scores.alibi(a["slopes"]), scores.softcap(2.0), scores.alibi(a["slopes"] ** 2)),
    **{
        f"bias of {axes or 'no axes'}": lambda a, axes=axes: (
            scores.bias(a["bias"][tuple(slice(None) if axis in axes else slice(1) for axis in "BNTS")]),
            scores.softcap(2.0),
        )
        for axes in ("", "N", "T", "S", "BT", "NS", "TS", "NTS", "BTS", "BNTS")
    },
}


def value_and_gradients(which: str, options: Any, arrays: Any) -> Any:
    def call(arrays: Any) -> Any:
        tile = TILE if which == "triton" else None
        return attention(*(arrays[n] for n in "qkv"), backend=which, tile=tile, return_lse=True, **options(arrays))

    out, vjp = jax.vjp(call, arrays)
    return out, vjp(jax.tree.map(jnp.cos, out))


def agrees(options: Any, arrays: Any, close: Any, times: float = 2) -> None:
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), arrays)
    with jax.default_matmul_precision("highest"):
        found, expected = jax.jit(partial(value_and_gradients, "triton", options))(arrays), value_and_gradients("reference", options, wide)
    dtype = arrays["q"].dtype
    close(jax.tree.map(lambda a: a.astype(dtype), found), expected, times=times)


def arrays_of(normal: Any, B: int = 2, H: int = 12, Hv: int = 20, **more: tuple[int, ...]) -> dict[str, jax.Array]:
    shapes = {"q": (B, T, N, H), "k": (B, S, K, H), "v": (B, S, K, Hv), **more}
    return {name: normal(*shape, seed=n) for n, (name, shape) in enumerate(shapes.items())}


@needs_triton
@pytest.mark.parametrize("name", ARRAYS)
def test_gradients_of_scores_arrays_over_several_tiles(name: str, normal: Any, close: Any) -> None:
    arrays = arrays_of(normal, slopes=(N,), bias=(2, N, T, S))
    agrees(lambda a: {"mask": masks.sliding_window(20, 3), "score": ARRAYS[name](a)}, arrays, close)


SEGMENTS = np.sort(np.random.default_rng(0).integers(0, 3, (2, S)), 1)
MASKS = {
    "none": None,
    "causal": masks.causal(),
    "prefix": masks.prefix([9, 30]),
    "prefix & valid": masks.prefix([9, 30]) & masks.valid(np.arange(S) % 5 != np.array([[1], [2]])),
    "segments & lengths & window": masks.segments(SEGMENTS[:, :T], SEGMENTS) & (masks.lengths([40, 17]) & masks.sliding_window(9, 30)),
}


@needs_triton
@pytest.mark.parametrize("name", MASKS)
def test_masks_with_sinks_and_dropout(name: str, normal: Any, close: Any) -> None:
    arrays = arrays_of(normal, sinks=(N,))
    agrees(lambda a: {"mask": MASKS[name], "sinks": a["sinks"], "dropout": Dropout(0.2, 7)}, arrays, close)


@needs_triton
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_floats(dtype: str, normal: Any, close: Any) -> None:
    arrays = jax.tree.map(lambda a: a.astype(dtype), arrays_of(normal, H=256, Hv=3, slopes=(N,), bias=(1, N, T, S)))
    agrees(lambda a: {"mask": masks.causal(), "score": (scores.alibi(a["slopes"]), scores.bias(a["bias"]))}, arrays, close, times=4)


@needs_triton
def test_under_x64(normal: Any, close: Any) -> None:
    arrays = arrays_of(normal, slopes=(N,), bias=(1, N, T, S))
    with jax.enable_x64(True):
        agrees(lambda a: {"mask": masks.prefix([9, 30]), "score": (scores.alibi(a["slopes"]), scores.bias(a["bias"]))}, arrays, close)


@needs_triton
def test_under_scan_rematerialisation_and_vmap(normal: Any, close: Any) -> None:
    """Two layers by scan with a remat policy, mapped, differentiated."""
    x, weights = normal(2, 1, 20, 2, 8), normal(2, 8, 8, seed=1) / 3

    def loss(which: str, weights: Any, x: Any) -> Any:
        @jax.checkpoint
        def layer(x: Any, w: Any) -> Any:
            return x + attention(x @ w, x, x, mask=masks.causal(), score=scores.softcap(3.0), backend=which), None

        return jax.vmap(lambda x: jax.lax.scan(layer, x, weights)[0])(x).var()

    with jax.default_matmul_precision("highest"):
        close(*(jax.jit(jax.value_and_grad(partial(loss, which), (0, 1)))(weights, x) for which in ("triton", "reference")), times=2)


@needs_triton
def test_holds_no_array_over_queries_and_keys_but_the_users_own(shapes_in: Any, normal: Any) -> None:
    arrays = arrays_of(normal, slopes=(N,), bias=(T, S))

    def both(options: Any) -> set[tuple[int, ...]]:
        shapes = shapes_in(jax.make_jaxpr(partial(value_and_gradients, "triton", options))(arrays))
        return {shape for shape in shapes if {T, 64} & set(shape) and {S, 48} & set(shape)}

    assert both(lambda a: {"mask": masks.causal(), "score": scores.alibi(a["slopes"]), "dropout": Dropout(0.1)}) <= {(T, S)}  # an argument, unused
    assert both(lambda a: {"score": scores.bias(a["bias"])}) <= {(T, S), (1, 1, T, S)}


Q = np.ones((1, 20, 2, 8), np.float32)


def own(s: Any, i: Any) -> Any:
    return s + i.q


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tile": (24, 16)}, r"takes tiles whose sides are powers of two from 16 to 128, received (24, 16)"),
        ({"tile": (16, 256)}, r"takes tiles whose sides are powers of two from 16 to 128, received (16, 256)"),
        ({"score": scores.relative_bias(np.ones((2, 8), np.float32), True, 20)}, "knows no score relative_bias"),
        ({"score": (scores.softcap(2.0), own)}, "knows no score own"),
        ({"mask": lambda i: i.k > 3}, "knows no mask <lambda>"),
        ({"mask": np.ones((20, 20), bool)}, "knows no mask dense"),
        ({"mask": masks.causal() & masks.block_sparse(np.ones((2, 2), bool), 16)}, "knows no mask block_sparse"),
        ({"mask": masks.dilated(2)}, "knows no mask dilated"),
        ({"mask": ~masks.causal()}, "takes masks that are combined by & alone, received ~causal()"),
        ({"mask": masks.causal() | masks.sliding_window(3)}, "takes masks that are combined by & alone, received (causal() | sliding_window(left=3, right=0))"),
        ({"q": Q[:, :0]}, "takes no empty arrays"),
        ({"q": np.ones((1, 20, 2, 300), np.float32)}, "takes head dimensions up to 256, received 300"),
        ({"q": Q.astype(jnp.float8_e4m3fn)}, "takes bfloat16, float16 and float32, received float8_e4m3fn"),
    ],
)
def test_refuses_in_words(options: dict[str, Any], reason: str) -> None:
    q = options.pop("q", Q)
    with pytest.raises(NotImplementedError) as refusal:
        attention(q, q, q, backend="triton", **options)
    assert str(refusal.value) == f"backend 'triton': {reason}"


def test_refuses_float64() -> None:
    with jax.enable_x64(True):
        assert backend.supports(make_request(*[Q.astype(np.float64)] * 3, *[None] * 7)) == "takes bfloat16, float16 and float32, received float64"


@pytest.mark.parametrize("lacking", ["python", "jax", "jax_triton"])
def test_says_what_to_install(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    python, version = (3, 11 if lacking == "python" else 12), (0, 10 if lacking == "jax" else 11, 2)
    monkeypatch.setattr(backend, "sys", SimpleNamespace(version_info=python))
    monkeypatch.setattr(backend, "jax", SimpleNamespace(__version_info__=version, Array=jax.Array))
    monkeypatch.setattr(backend, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None)))
    reason = backend.supports(make_request(Q, Q, Q, *[None] * 7)) or ""
    assert reason.startswith("needs jax-triton: " if lacking == "jax_triton" else "needs Python 3.12, jax 0.11 and jax-triton: ")
    assert "pip install" in reason


COMPILE = """
import jax, jax.numpy as jnp
from pallas_kernels import attention, masks, scores
from pallas_kernels.flash.backends.triton.compiling import build

q, slopes = jax.ShapeDtypeStruct((1, 1000, 2, 64), jnp.bfloat16), jax.ShapeDtypeStruct((2,), jnp.float32)
call = lambda q, slopes: attention(q, q, q, mask=masks.causal(), score=scores.alibi(slopes), backend="triton")
for capability in (80, 90):
    for kernel in build(lambda q, slopes: jax.vjp(call, q, slopes)[1](q), q, slopes, capability=capability):
        print(kernel.kernel, kernel.spilled, kernel.shared <= 166912)
"""


@needs_triton
@pytest.mark.slow
def test_compiles_without_spills() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"JAX_PLATFORMS": "cpu"}
    output = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=True).stdout
    assert output.split("\n")[:-1] == [f"attention_{name} 0 True" for name in ("forward", "dq", "dkv", "drows")] * 2
