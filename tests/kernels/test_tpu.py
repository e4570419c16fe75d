"""The TPU's kernels, interpreted: they pass the conformance kit, race with nobody, and choose tiles that fit. scripts/compile_kernels.py compiles them."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import Dropout, attention, explain, lookup, masks, scores
from pallas_kernels.flash.backends.tpu import rules, tiling
from pallas_kernels.flash.request import make_request
from pallas_kernels.flash.tables import deposit_p, lookup_p, replayed
from pallas_kernels.testing import CHECKS, check_attention

TILE = (128, 128)
tiled = partial(attention, backend="tpu", tile=TILE)
SHORT_FLOATS = {name for name in CHECKS if "short_floats" in name}  # a TPU has no float16


@pytest.mark.parametrize("checks", [("positions", "dropout", "empty_rows"), ("score_gradients", "lse_gradients", "vmap_of_gradients", "together_gradients")])
def test_passes(checks: tuple[str, ...]) -> None:
    assert not check_attention(tiled, checks=checks, seeds=1).refused


@pytest.mark.slow
def test_passes_everything() -> None:
    report = check_attention(tiled)
    assert set(report.refused) <= SHORT_FLOATS
    assert all(r.passed == 20 for r in report.results if r.name not in SHORT_FLOATS)


def value_and_gradients(backend: str, arrays: Any, options: Any) -> Any:
    def call(arrays: Any) -> Any:
        tile = TILE if backend == "tpu" else None
        return attention(*(arrays[n] for n in "qkv"), backend=backend, tile=tile, return_lse=True, **options(arrays))

    out, vjp = jax.vjp(call, arrays)
    return out, vjp(jax.tree.map(jnp.cos, out))


RACES = {
    "causal & segments, T5, dropout": lambda a: {
        "mask": masks.causal() & masks.segments(np.arange(150)[None] // 100, np.arange(270)[None] // 100),
        "score": scores.relative_bias(a["table"], False, 20),
        "dropout": Dropout(0.2, 3),
    },
    "sinks, bias, arrays of queries and of keys": lambda a: {
        "sinks": a["sinks"],
        "score": (scores.bias(a["bias"]), scores.from_function(lambda s, i, row, key: s * row + key, row=(a["row"], "BT"), key=(a["key"], "NS"))),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RACES)
def test_right_in_the_simulator_of_a_tpus_memory_and_no_races(name: str, normal: Any, close: Any) -> None:
    T, S, N, K = 150, 270, 4, 2
    shapes = {"q": (1, T, N, 16), "k": (1, S, K, 16), "v": (1, S, K, 24), "table": (N, 8), "sinks": (N,), "bias": (T, S), "row": (1, T), "key": (N, S)}
    arrays = {name: normal(*shape, seed=n) for n, (name, shape) in enumerate(shapes.items())}
    with jax.default_matmul_precision("highest"):
        expected = jax.jit(partial(value_and_gradients, "reference", options=RACES[name]))(arrays)
        with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(detect_races=True, out_of_bounds_reads="uninitialized")):
            actual = jax.jit(partial(value_and_gradients, "tpu", options=RACES[name]))(arrays)
            jax.block_until_ready(actual)
    close(actual, expected, times=3)
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call as simulator  # where it keeps what it found; there is no public name

    assert simulator.races is not None and not simulator.races.races_found


def test_holds_no_array_over_queries_and_keys_but_the_users_own(shapes_in: Any, normal: Any) -> None:
    T, S, N = 650, 900, 2  # in tiles: 768 and 1024
    arrays = {"q": normal(1, T, N, 8), "k": normal(1, S, N, 8), "v": normal(1, S, N, 8), "table": normal(N, 8), "bias": normal(T, S)}

    def both(options: Any) -> set[tuple[int, ...]]:
        shapes = shapes_in(jax.make_jaxpr(partial(value_and_gradients, "tpu", options=options))(arrays))
        return {shape for shape in shapes if {T, 768} & set(shape) and {S, 1024} & set(shape)}

    mask = masks.causal() & masks.segments(np.arange(T)[None] // 100, np.arange(S)[None] // 100)
    learned = lambda a: {"mask": mask, "score": scores.relative_bias(a["table"], False, 20), "dropout": Dropout(0.1)}  # noqa: E731
    assert both(learned) <= {(T, S)}  # the bias is an argument here too, and unused
    assert both(lambda a: {"score": scores.bias(a["bias"])}) <= {(T, S), (1, 1, T, S)}


def test_under_scan_rematerialisation_and_vmap(normal: Any, close: Any) -> None:
    """Two layers by scan with a remat policy, mapped, differentiated."""
    x, weights = normal(2, 1, 150, 2, 8), normal(2, 8, 8, seed=1) / 3

    def loss(backend: str, weights: Any, x: Any) -> Any:
        @jax.checkpoint
        def layer(x: Any, w: Any) -> Any:
            return x + attention(x @ w, x, x, mask=masks.sliding_window(30), score=scores.softcap(3.0), backend=backend), None

        return jax.vmap(lambda x: jax.lax.scan(layer, x, weights)[0])(x).var()

    with jax.default_matmul_precision("highest"):
        close(*(jax.jit(jax.value_and_grad(partial(loss, backend), (0, 1)))(weights, x) for backend in ("tpu", "reference")), times=2)


def request_of(T: int = 4096, H: int = 64, dtype: str = "bfloat16", B: int = 1, N: int = 2, **options: Any) -> Any:
    q = jax.ShapeDtypeStruct((B, T, N, H), dtype)
    asked = {"mask": None, "score": None, "tile": None, **options}
    return jax.eval_shape(lambda q: make_request(q, q, q, asked["mask"], asked["score"], None, None, None, None, None, asked["tile"]), q)


def many(s: Any, i: Any) -> Any:
    """Keeps many tiles alive until the end, forward and back."""
    return sum(jnp.tanh(s * (n + 1)) * jnp.cos(s + n) for n in range(20))


@pytest.mark.parametrize("limit", [2**24, 2**25, 2**26])
@pytest.mark.parametrize(("H", "dtype", "score"), [(64, "bfloat16", None), (256, "float32", scores.softcap(2.0)), (256, "float32", many)])
def test_the_largest_tile_that_fits(H: int, dtype: str, score: Any, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "limit", lambda: limit)
    request = request_of(H=H, dtype=dtype, score=score)
    tile = tiling.choose(request)
    assert tiling.needs(request, tile) <= limit
    larger = tiling.SIDES[: tiling.SIDES.index(tile)]
    assert all(tiling.needs(request, other) > limit for other in larger)


def test_short_calls_have_short_tiles() -> None:
    assert tiling.choose(request_of(T=37)) == (128, 128)
    assert tiling.choose(request_of(T=300)) == (384, 384)


Q = np.ones((1, 300, 2, 64), np.float32)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tile": (100, 128)}, r"takes tiles of multiples of 128, received \(100, 128\)"),
        ({"tile": (4096, 4096)}, r"tiles of 4096 x 4096 need \d+\.\d MiB of on-chip memory, of 32 that it may take here"),
        ({"tile": TILE, "score": lambda s, i: many(many(many(s, i), i), i), "H": 4096}, r"need .* MiB of on-chip memory"),
        ({"dtype": np.float16}, "takes float32 and bfloat16, received float16"),
        ({"T": 0}, "takes no empty arrays"),
    ],
)
def test_what_it_refuses_it_says(options: Any, reason: str) -> None:
    q = np.ones((1, options.pop("T", 300), 2, options.pop("H", 64)), options.pop("dtype", np.float32))
    with pytest.raises(NotImplementedError, match=f"backend 'tpu': .*{reason}"):
        attention(q, q, q, backend="tpu", **options)
    assert re.search(reason, dict(explain(q, q, q, platform="tpu", **options).reasons)["tpu"] or "")


def test_lists_that_do_not_fit_scalar_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.zeros((64, 4096), int)
    request = request_of(B=64, mask=masks.segments(ids), tile=TILE)
    assert tiling.misfit(request) is None  # 64 * 32 * 32
    monkeypatch.setattr(tiling, "ENTRIES", 2**15)
    assert "lists of tiles of 128 x 128 to visit have 65,536 entries, of 32,768 that fit" in str(tiling.misfit(request))


def test_explained() -> None:
    assert explain(Q, Q, Q, score=many, platform="tpu").chosen == "tpu"
    assert "tpu        chosen" in str(explain(Q, Q, Q, platform="tpu"))


@pytest.mark.parametrize("features", [3, 128, 300])
@pytest.mark.parametrize("lead", [(1, 1), (8, 1), (1, 256)])
def test_lookups_by_lanes_equal_gathers(features: int, lead: tuple[int, int], normal: Any, close: Any) -> None:
    index = np.random.default_rng(0).integers(-1, features + 1, (8, 256)).astype(np.int32)
    table = normal(*lead, features)
    by_lanes = {lookup_p: rules.lookup, deposit_p: rules.deposit}

    def run(table: Any) -> Any:
        out, back = jax.vjp(lambda table: lookup(table, index), table)
        return out, back(jnp.sin(out))

    close(replayed(run, by_lanes)(table), run(table))
    flags = np.random.default_rng(1).random((*lead, features)) < 0.5
    np.testing.assert_array_equal(replayed(lookup, by_lanes)(flags, index), lookup(flags, index))
