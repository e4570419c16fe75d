"""Hopper's kernels, interpreted: they pass the conformance kit, race with nobody, and lower for the chip. scripts/compile_kernels.py compiles them."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from pallas_kernels import Dropout, attention, explain, lookup, masks, scores
from pallas_kernels.flash.backends import hopper
from pallas_kernels.flash.backends.hopper import tiling
from pallas_kernels.flash.request import make_request
from pallas_kernels.testing import CHECKS, check_attention

interpreted = pytest.mark.skipif(jax.__version_info__ < hopper.NEEDED, reason="the interpreter of GPU kernels needs jax 0.11.2, and that Python 3.12")
SHORT = ("float16", "bfloat16")
judge = partial(check_attention, partial(attention, backend="hopper"), dtypes=SHORT)


@interpreted
def test_passes() -> None:
    assert not judge(checks=("positions", "dropout", "empty_rows", "together_gradients"), seeds=1).refused


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_passes_everything(check: str) -> None:
    assert not judge(checks=(check,), seeds=1 if "vmap" in check else 2).refused


def value_and_gradients(backend: str, arrays: Any, options: Any, tile: Any = None) -> Any:
    def call(arrays: Any) -> Any:
        o, lse = attention(*(arrays[n] for n in "qkv"), backend=backend, tile=tile, return_lse=True, **options(arrays))
        return o.astype(jnp.float32), lse

    (o, lse), vjp = jax.vjp(call, arrays)
    return (o, lse), vjp((jnp.cos(o), jnp.where(jnp.isinf(lse), 0, jnp.cos(lse))))


T, S, N, K = 150, 270, 4, 2
SHAPES = {"q": (1, T, N, 16), "k": (1, S, K, 16), "v": (1, S, K, 24)}
OTHERS = {"table": (N, 8), "sinks": (N,), "bias": (T, S), "row": (1, T), "key": (N, S), "features": (N, 3), "by_key": (1, S, 2), "slope": (N,)}


@pytest.fixture(scope="module")
def arrays() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    short = {name: jnp.asarray(rng.normal(size=shape), jnp.float16) for name, shape in SHAPES.items()}
    return short | {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in OTHERS.items()}


def weighted(s: Any, i: Any, features: Any, by_key: Any) -> Any:
    ends = jnp.concatenate([features[..., 2:], features[..., :1] * jnp.arange(1.0, 3.0)], -1)
    return s + (ends[..., :2] * by_key).sum(-1) - ends.max(-1) + lookup(ends, (i.q - i.k) % 3) * lookup(by_key, i.q % 2)


def uncommon(s: Any, i: Any, slope: Any) -> Any:
    """Operations that the compiler lacks, and their derivatives, at distances of zero too."""
    d = jnp.abs(i.q - i.k).astype(jnp.float32)
    a = jnp.abs(slope)
    changed = s - a * jnp.log1p(d / 50) + jnp.expm1(-d / 70) + (d / 100 + 0.01) ** a - jnp.floor(d / 7) / 9 + jnp.ceil(d / 9) / 9
    changed += jnp.cosh(s / 9) * jnp.sinh(s / 9)
    return jnp.where(jnp.isfinite(changed), changed, 0.0)


OPTIONS = {
    "causal & segments, T5, dropout": lambda a: {
        "mask": masks.causal() & masks.segments(np.arange(T)[None] // 100, np.arange(S)[None] // 100),
        "score": scores.relative_bias(a["table"], False, 20),
        "dropout": Dropout(0.2, 3),
    },
    "sinks, bias, arrays of queries and of keys": lambda a: {
        "sinks": a["sinks"],
        "score": (scores.bias(a["bias"]), scores.from_function(lambda s, i, row, key: s * row + key, row=(a["row"], "BT"), key=(a["key"], "NS"))),
    },
    "dense mask, features": lambda a: {
        "mask": masks.dense(np.random.default_rng(1).random((T, S)) < 0.5),
        "score": scores.from_function(weighted, features=(a["features"], "N"), by_key=(a["by_key"], "BS")),
    },
    "window, uncommon operations": lambda a: {
        "mask": masks.sliding_window(70, 20),
        "score": scores.from_function(uncommon, slope=(a["slope"], "N")),
    },
}


@interpreted
@pytest.mark.parametrize("name", OPTIONS)
def test_right_and_no_races(name: str, arrays: Any, close: Any) -> None:
    expected = value_and_gradients("reference", jax.tree.map(lambda a: a.astype(jnp.float32), arrays), OPTIONS[name])
    actual = jax.block_until_ready(value_and_gradients("hopper", arrays, OPTIONS[name]))
    short = jax.tree.map(lambda a: a.astype(jnp.float16), (actual, expected))
    close(*short, times=3)
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks  # where it keeps what it found; there is no public name

    assert not gpu_callbacks.get_races().races_found


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("tile", [(128, 16), (128, 128)])
@pytest.mark.parametrize("name", OPTIONS)
def test_right_with_other_tiles(name: str, tile: Any, arrays: Any, close: Any) -> None:
    expected = value_and_gradients("reference", jax.tree.map(lambda a: a.astype(jnp.float32), arrays), OPTIONS[name])
    actual = value_and_gradients("hopper", arrays, OPTIONS[name], tile)
    close(*jax.tree.map(lambda a: a.astype(jnp.float16), (actual, expected)), times=3)


def lowered(fn: Any, *args: Any) -> str:
    """`fn` for an H100, up to where the driver takes over."""
    device = AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device)):
        return str(jax.jit(fn).trace(*args).lower(lowering_platforms=("cuda",)).as_text())


@interpreted
@pytest.mark.parametrize("name", OPTIONS)
def test_lowers_for_the_chip(name: str, arrays: Any) -> None:
    text = lowered(partial(value_and_gradients, "hopper", options=OPTIONS[name]), arrays)
    made = set(re.findall(r"attention_([a-z_]+?)_mosaic_gpu", text)) or set(re.findall(r"attention_(forward|dq|dk_dv|da)", text))
    assert made >= {"forward", "dq", "dk_dv"}
    assert ("da" in made) == (name == "sinks, bias, arrays of queries and of keys")


UNREAD = {
    "constant": lambda a: {"score": lambda s, i: jnp.zeros_like(s)},
    "without slope": lambda a: {"score": lambda s, i: jnp.sign(s)},
    "of the positions alone": lambda a: {"score": scores.from_function(lambda s, i, b: b + jnp.zeros_like(s), b=(a["bias"], "TS"))},
    "unread": lambda a: {"score": scores.from_function(lambda s, i, b: s, b=(a["bias"], "TS"))},
}


@interpreted
@pytest.mark.parametrize("name", UNREAD)
def test_a_derivative_that_reads_not_everything_ends_all_the_same(name: str, arrays: Any, close: Any) -> None:
    expected = value_and_gradients("reference", jax.tree.map(lambda a: a.astype(jnp.float32), arrays), UNREAD[name])
    close(*jax.tree.map(lambda a: a.astype(jnp.float16), (value_and_gradients("hopper", arrays, UNREAD[name]), expected)), times=3)


@interpreted
def test_a_function_may_divide_by_an_array_that_ends_within_a_tile(arrays: Any, close: Any) -> None:
    options = lambda a: {"score": scores.from_function(lambda s, i, b: s / (2 + jnp.abs(b)) ** 2 + s / b, b=(a["bias"], "TS"))}  # noqa: E731
    given = arrays | {"bias": jnp.abs(arrays["bias"]) + 1}
    expected = value_and_gradients("reference", jax.tree.map(lambda a: a.astype(jnp.float32), given), options)
    close(*jax.tree.map(lambda a: a.astype(jnp.float16), (value_and_gradients("hopper", given, options), expected)), times=3)


OPERATIONS: dict[str, Any] = {
    "abs": jnp.abs, "ceil": jnp.ceil, "clip": lambda s: jnp.clip(s, -1.0, 1.0), "cos": jnp.cos, "cosh": jnp.cosh, "cbrt": lambda s: jnp.cbrt(s * s + 1),
    "exp": jnp.exp, "exp2": jnp.exp2, "expm1": jnp.expm1, "floor": jnp.floor, "gelu": jax.nn.gelu, "inverse": lambda s: (s * s + 1) ** -2,
    "log": lambda s: jnp.log(s * s + 1), "log1p": lambda s: jnp.log1p(s * s), "log2": lambda s: jnp.log2(s * s + 1), "mod": lambda s: jnp.mod(s, 2.0),
    "not": lambda s: jnp.where(~(s > 0), s, 0.5 * s), "power": lambda s: (s * s + 1) ** 0.3, "relu": jax.nn.relu, "round": lambda s: s + jnp.round(s),
    "rsqrt": lambda s: jax.lax.rsqrt(s * s + 1), "sigmoid": jax.nn.sigmoid, "sign": lambda s: s * jnp.sign(s), "sin": jnp.sin, "sinh": jnp.sinh,
    "softplus": jax.nn.softplus, "sqrt": lambda s: jnp.sqrt(s * s + 1), "tan": lambda s: jnp.tan(0.1 * s), "tanh": jnp.tanh, "square": jnp.square,
    "stack": lambda s: jnp.stack([s, s * s], -1).sum(-1), "truncate": lambda s: s + jnp.trunc(s),
    "shifts": lambda s: s * (((s.astype(jnp.int32) << 2) >> 1) ^ 5).astype(jnp.float32), "divmod": lambda s: s + (s.astype(jnp.int32) % 3) * 1.0,
}  # fmt: skip


@interpreted
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_lowers_for_the_chip_with_its_derivative(name: str, arrays: Any) -> None:
    score = lambda s, i: OPERATIONS[name](s)  # noqa: E731
    lowered(partial(value_and_gradients, "hopper", options=lambda a: {"score": score, "mask": ~masks.sliding_window(9)}), arrays)


@interpreted
def test_operations_are_what_they_are_elsewhere(arrays: Any, close: Any) -> None:
    """All of them together, each small, so that one compiled kernel tells."""
    rough = ("ceil", "floor", "round", "truncate", "mod", "shifts", "divmod", "sign")  # a last bit of s moves these by 1

    def score(s: Any, i: Any) -> Any:
        x = s + 0.37 * (i.q - i.k).astype(jnp.float32) / 20
        return s + sum(0.01 * op(0.5 * x) for name, op in OPERATIONS.items() if name not in rough) + sum(0.01 * OPERATIONS[n](i.q * 0.37 - i.k) for n in rough)

    options = lambda a: {"score": score}  # noqa: E731
    expected = value_and_gradients("reference", jax.tree.map(lambda a: a.astype(jnp.float32), arrays), options)
    close(*jax.tree.map(lambda a: a.astype(jnp.float16), (value_and_gradients("hopper", arrays, options), expected)), times=4)


@interpreted
def test_wide_heads_make_dk_and_dv_one_after_the_other(normal: Any, close: Any) -> None:
    q, k, v = (normal(1, length, heads, 256, seed=n).astype(jnp.float16) for n, (length, heads) in enumerate([(70, 2), (90, 1), (90, 1)]))
    options = lambda a: {"mask": masks.causal(), "score": scores.softcap(3.0)}  # noqa: E731
    wide = {"q": q, "k": k, "v": v}
    expected = value_and_gradients("reference", jax.tree.map(lambda a: a.astype(jnp.float32), wide), options)
    close(*jax.tree.map(lambda a: a.astype(jnp.float16), (value_and_gradients("hopper", wide, options), expected)), times=3)


@interpreted
def test_holds_no_array_over_queries_and_keys_but_the_users_own(shapes_in: Any, arrays: Any) -> None:
    def both(options: Any) -> set[tuple[int, ...]]:
        shapes = shapes_in(jax.make_jaxpr(partial(value_and_gradients, "hopper", options=options))(arrays))
        return {shape for shape in shapes if {T, 152, 256} & set(shape) and {S, 272, 320, 384} & set(shape)}

    assert both(OPTIONS["causal & segments, T5, dropout"]) <= {(T, S)}  # the bias is an argument here too, and unused


@interpreted
def test_under_scan_and_vmap_and_lowers_under_rematerialisation(normal: Any, close: Any) -> None:
    """Two layers by scan, mapped, differentiated. (The interpreter's callbacks may not be rematerialised; the chip's kernels have none.)"""
    x, weights = normal(2, 1, 70, 2, 16).astype(jnp.float16), (normal(2, 16, 16, seed=1) / 4).astype(jnp.float16)

    def loss(backend: str, wrap: Any, weights: Any, x: Any) -> Any:
        @wrap
        def layer(x: Any, w: Any) -> Any:
            return x + attention(x @ w, x, x, mask=masks.sliding_window(30), score=scores.softcap(3.0), backend=backend), None

        return jax.vmap(lambda x: jax.lax.scan(layer, x, weights)[0])(x).astype(jnp.float32).var()

    close(*(jax.jit(jax.grad(lambda w, x, b=backend: loss(b, lambda f: f, w, x), (0, 1)))(weights, x) for backend in ("hopper", "reference")), times=8)
    assert "attention_dq" in lowered(jax.grad(partial(loss, "hopper", jax.checkpoint), (0, 1)), weights, x)


def request_of(H: int = 64, Hv: int | None = None, **options: Any) -> Any:
    q, v = (jax.ShapeDtypeStruct((1, 4096, 2, width), jnp.bfloat16) for width in (H, Hv or H))
    asked = {"mask": None, "score": None, "tile": None, **options}
    return jax.eval_shape(lambda q, v: make_request(q, q, v, asked["mask"], asked["score"], None, None, None, None, None, asked["tile"]), q, v)


@pytest.mark.parametrize(
    ("request_", "keys"),
    [
        (request_of(64), (128, 64, 64)),
        (request_of(128, score=scores.softcap(2.0)), (64, 64, 32)),
        (request_of(192, 128, mask=masks.causal()), (64, 32, 32)),
        (request_of(256, mask=masks.causal()), (64, 32, 32)),
        (request_of(256, score=scores.softcap(2.0)), (32, 16, 32)),
        (request_of(64, tile=(128, 32)), (32, 32, 32)),
    ],
)
def test_wider_heads_and_functions_have_narrower_tiles(request_: Any, keys: tuple[int, int, int]) -> None:
    tiles = tiling.choose(request_)
    assert (tiles.forward[1], tiles.dq[1], tiles.dkv[0]) == keys


Q = np.ones((1, 300, 2, 64), jnp.bfloat16)


def halved_thrice(s: Any, i: Any) -> Any:
    return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] / 2), (0, s))[1]


@interpreted
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tile": (100, 128)}, r"takes tiles of 128 queries and 16, 32, 64 or 128 keys, received \(100, 128\)"),
        ({"H": 257}, "takes head dimensions up to 256, received 257"),
        ({"dtype": np.float32}, "takes float16 and bfloat16, received float32"),
        ({"T": 0}, "takes no empty arrays"),
        ({"score": scores.relative_bias(np.zeros((2, 66), np.float32), True, 128)}, "takes arrays with up to 64 features, received 66"),
        (
            {"score": scores.from_function(lambda s, i, a: s + a[..., 0], a=(np.zeros((300, 300, 2), np.float32), "TS"))},
            r"takes no features of arrays that vary over queries and keys, received features \(2,\)",
        ),
        ({"score": lambda s, i: s + jax.scipy.special.gammaln(s)}, "has no rule for 'lgamma', which score <lambda> or its derivative uses"),
        ({"score": halved_thrice}, "cannot differentiate score halved_thrice: Reverse-mode"),
        ({"tile": (128, 128), "H": 256}, "needs 262,144 bytes of shared memory, of 228,352 .* take narrower tiles"),
    ],
)
def test_what_it_refuses_it_says(options: Any, reason: str) -> None:
    q = np.ones((1, options.get("T", 300), 2, options.get("H", 64)), options.get("dtype", jnp.bfloat16))
    options = {name: value for name, value in options.items() if name in ("tile", "score")}
    with pytest.raises(NotImplementedError, match=f"backend 'hopper': .*{reason}"):
        attention(q, q, q, backend="hopper", **options)
    assert re.search(reason, dict(explain(q, q, q, platform="gpu", **options).reasons)["hopper"] or "")


@interpreted
def test_other_chips_are_refused_by_name() -> None:
    mesh = AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=AbstractDevice("NVIDIA A100-SXM4-80GB", None, "gpu"))
    with jax.sharding.use_abstract_mesh(mesh):
        assert "needs a GPU of the Hopper generation, this is NVIDIA A100" in str(explain(Q, Q, Q, platform="gpu"))


@interpreted
def test_explained_with_what_is_copied() -> None:
    assert "hopper     chosen\n" in str(explain(Q[:, :296], Q[:, :296], Q[:, :296], platform="gpu"))
    odd = np.ones((1, 37, 2, 7), jnp.bfloat16)
    assert "hopper     chosen; lengthens T = 37 to 40, S = 37 to 40, H = 7 to 16, Hv = 7 to 16 in memory\n" in str(explain(odd, odd, odd, platform="gpu"))


@pytest.mark.skipif(jax.__version_info__ >= hopper.NEEDED, reason="about versions of jax before 0.11.2")
def test_older_versions_of_jax_are_told_what_it_needs() -> None:
    assert "needs jax 0.11.2 or later, which needs Python 3.12" in str(explain(Q, Q, Q, platform="gpu"))
