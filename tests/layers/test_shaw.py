from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import Dropout, masks
from pallas_kernels.flash.functions import Index
from transformer_jax.config import from_json, to_json
from transformer_jax.layers import Alibi, Build, Causal, Context, Mixer, NoMask, ShawAttention, SlidingWindow, Softcap
from transformer_jax.layers.base import attention_dropout
from transformer_jax.precision import Precision

pytestmark = pytest.mark.usefixtures("quick_compile")
B, T, D, H = 2, 13, 19, 5
q_at, k_at = np.arange(T)[:, None], np.arange(T)[None]
CAUSAL, ALL = k_at <= q_at, np.ones((T, T), bool)
RUNS = np.asarray([[5, 6, 7, 8, 0, 1, 2, 3, 4, 5, 6, 11, 12], np.arange(T)[::-1] * 2])


def shaw(config, backend="auto", **build):
    return config.make(Build(D, backend=backend, **build))


def by_loops(params, x, config, *, allowed, positions=None, score=lambda s, d: s):
    """Section 3.2, one query and key at a time: e = q.(k + a) / sqrt(H), alpha = softmax(e), z = sum of alpha (v + w)."""
    p, x = jax.tree.map(lambda a: np.asarray(a, np.float64), params), np.asarray(x, np.float64)
    allowed = np.broadcast_to(allowed, (len(x), T, T))
    positions = np.broadcast_to(np.arange(T), (len(x), T)) if positions is None else positions
    c, z = config.max_distance, np.zeros((len(x), T, config.num_heads, H))
    for b, n, t in np.ndindex(len(x), config.num_heads, T):
        g = n // (config.num_heads // config.kv_heads)
        q, e, values = x[b, t] @ p["query"]["kernel"][:, n], [], []
        for s in np.flatnonzero(allowed[b, t]):
            distance = int(positions[b, s]) - int(positions[b, t])
            row = max(-c, min(c, distance)) + c
            key, value = (x[b, s] @ p[name]["kernel"][:, g] for name in ("key", "value"))
            e.append(score(q @ (key + p["relative_key"][row]) / np.sqrt(H), distance))
            values.append(value + p["relative_value"][row] if config.values else value)
        if e:
            weights = np.exp(np.asarray(e) - max(e))
            z[b, t, n] = weights / weights.sum() @ np.asarray(values)
    return np.einsum("btnh,nhd->btd", z, p["out"]["kernel"])


def by_arrays(params, x, config, *, allowed, keep=1.0):
    """The same with arrays over queries and keys, differentiable."""
    q, k, v = (jnp.einsum("btd,dnh->btnh", x, params[name]["kernel"], precision="highest") for name in ("query", "key", "value"))
    k, v = (jnp.repeat(a, config.num_heads // config.kv_heads, axis=2) for a in (k, v))
    c = config.max_distance
    rows = np.clip(k_at - q_at, -c, c) + c
    s = jnp.einsum("btnh,bsnh->bnts", q, k, precision="highest") + jnp.einsum("btnh,tsh->bnts", q, params["relative_key"][rows], precision="highest")
    p = keep * jax.nn.softmax(jnp.where(allowed, s * H**-0.5, -jnp.inf))
    o = jnp.einsum("bnts,bsnh->btnh", p, v, precision="highest")
    if config.values:
        o = o + jnp.einsum("bnts,tsh->btnh", p, params["relative_value"][rows], precision="highest")
    return jnp.einsum("btnh,nhd->btd", o, params["out"]["kernel"], precision="highest")


SHAW = ShawAttention(4, mask=Causal(), num_kv_heads=2, head_dim=H, max_distance=3)
CASES = {
    "causal": (SHAW, CAUSAL),
    "all": (SHAW.replace(mask=NoMask(), num_kv_heads=None, num_heads=3), ALL),
    "window": (SHAW.replace(mask=SlidingWindow(4, right=2), num_kv_heads=1), (q_at - 4 <= k_at) & (k_at <= q_at + 2)),
    "nothing_near": (SHAW.replace(mask=~SlidingWindow(2, right=2)), abs(q_at - k_at) > 2),
    "nothing_for_some": (SHAW.replace(mask=~Causal()), ~CAUSAL),
    "distance_1": (SHAW.replace(mask=NoMask(), max_distance=1), ALL),
    "beyond_the_ends": (SHAW.replace(mask=NoMask(), max_distance=20), ALL),
    "keys_only": (SHAW.replace(mask=NoMask(), values=False), ALL),
}


@pytest.mark.parametrize("backend", ["blockwise", pytest.param("reference", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_equals_loops_over_queries_and_keys(close, normal, filled, case, backend):
    config, allowed = CASES[case]
    module, x = shaw(config, backend), normal(B, T, D)
    variables = filled(module, x, Context())
    assert ("relative_value" in variables["params"]) == config.values
    close(jax.jit(module.apply)(variables, x, Context()), by_loops(variables["params"], x, config, allowed=allowed), times=2)


@pytest.mark.parametrize("values", [True, False])
def test_positions_and_padding_count_and_places_do_not(close, normal, filled, values):
    """Positions that repeat, jump and fall: two texts in a row with padding between them, and a text back to front."""
    config = SHAW.replace(mask=NoMask(), values=values)
    module, x = shaw(config), normal(B, T, D)
    variables = filled(module, x, Context())
    texts, valid = np.asarray([[0] * 4 + [1] * 9, [0] * T]), np.asarray([[True] * 10 + [False] * 3, [False] * 2 + [True] * 11])
    context = Context(jnp.asarray(RUNS), mask=masks.segments(texts) & masks.valid(valid))
    allowed = (texts[:, :, None] == texts[:, None]) & valid[:, None]
    close(jax.jit(module.apply)(variables, x, context), by_loops(variables["params"], x, config, allowed=allowed, positions=RUNS), times=2)


def test_relative_keys_come_before_the_scores(close, normal, filled):
    config = SHAW.replace(num_heads=2, score=(Softcap(0.5), Alibi()))
    module, x = shaw(config), normal(B, T, D)
    variables = filled(module, x, Context())
    heads = [
        by_loops(
            jax.tree_util.tree_map_with_path(lambda path, a, n=n: a * (jnp.arange(2) == n)[:, None, None] if path[0].key == "out" else a, variables["params"]),
            x, config, allowed=CAUSAL, score=lambda s, d, n=n: 0.5 * np.tanh(s / 0.5) - abs(d) * 2.0 ** (-4 * (n + 1)),
        )
        for n in range(2)
    ]  # fmt: skip
    close(jax.jit(module.apply)(variables, x, Context()), sum(heads), times=2)


@pytest.mark.parametrize("case", ["causal", "all", "nothing_near", "distance_1", "keys_only"])
def test_gradients_equal_those_of_arrays_over_queries_and_keys(close, normal, filled, case):
    config, allowed = CASES[case]
    allowed = allowed | (q_at == k_at)  # the peer has no row with nothing allowed
    module, x, weight = shaw(config.replace(mask=NoMask())), normal(B, T, D), normal(B, T, D, seed=1)
    params = filled(module, x, Context())["params"]
    ours = partial(module.apply, context=Context(mask=masks.dense(allowed)))
    peer = partial(by_arrays, config=config, allowed=allowed)

    def gradients(f):
        return jax.jit(lambda params, x: jax.vjp(f, params, x)[1](weight))(params, x)

    close(gradients(lambda params, x: ours({"params": params}, x)), gradients(peer), times=3)


def test_rows_with_nothing_allowed_have_finite_gradients(normal, filled):
    module, x = shaw(SHAW.replace(mask=~Causal())), normal(B, T, D)
    variables = filled(module, x, Context())
    gradients = jax.jit(jax.grad(lambda variables: (module.apply(variables, x, Context()) ** 2).sum()))(variables)
    assert all(np.isfinite(a).all() and np.abs(a).max() > 0 for a in jax.tree.leaves(gradients))


@pytest.mark.parametrize("values", [True, False])
def test_dropout_is_of_the_probabilities_of_keys_and_of_distances_alike(close, normal, filled, values):
    config = SHAW.replace(dropout=0.4, values=values)
    module, x, key = shaw(config, training=True), normal(B, T, D), jax.random.key(3)
    variables = filled(shaw(config), x, Context())
    seed = module.apply(variables, rngs={"dropout": key}, method=lambda module: attention_dropout(module, 0.4, True).seed)
    shapes = ((B, 1, 1, 1), (1, 4, 1, 1), (1, 1, T, 1), (1, 1, 1, T)) + ((1, 1, T, 1), (1, 1, 1, T))
    kept = Dropout(0.4, seed, 4).keep(Index(*(np.arange(max(shape)).reshape(shape) for shape in shapes)))
    expected = by_arrays(variables["params"], x, config, allowed=CAUSAL, keep=kept / 0.6)
    close(jax.jit(lambda: module.apply(variables, x, Context(), rngs={"dropout": key}))(), expected, times=2)


@pytest.mark.parametrize("values", [True, False])
def test_a_step_at_a_time_equals_the_whole(close, normal, filled, values):
    config = SHAW.replace(values=values)
    build = Build(D)
    module, x = config.make(build), normal(B, 11, D)
    variables = filled(module, x, Context())
    cache, steps = config.init_cache(build, B, T), []
    for start, stop in [(0, 4), (4, 5), (5, 6), (6, 11)]:
        context = Context(jnp.broadcast_to(jnp.arange(start, stop), (B, stop - start)), kv_positions=jnp.arange(T)[None], index=jnp.int32(start))
        y, cache = jax.jit(partial(module.apply, method="step"))(variables, x[:, start:stop], context, cache)
        steps.append(y)
    close(np.concatenate(steps, 1), jax.jit(module.apply)(variables, x, Context()), times=2)


@pytest.mark.parametrize("values", [True, False])
@pytest.mark.parametrize(("backend", "expected"), [("blockwise", False), ("reference", True)])
def test_no_array_over_queries_and_keys_is_held_where_they_are_more_than_a_tile(shapes_in, backend, expected, values):
    length = 1031
    module, x = shaw(SHAW.replace(values=values), backend), jax.ShapeDtypeStruct((1, length, D), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), x, Context())
    program = jax.make_jaxpr(jax.grad(lambda variables, x: module.apply(variables, x, Context()).sum()))(variables, x)
    square = {shape for shape in shapes_in(program) if sum(n >= length for n in shape) > 1}
    assert bool(square) is expected, square


def test_half_precision_rounds_and_no_more(close, normal, filled):
    module, x = shaw(SHAW, precision=Precision(compute="bfloat16")), normal(B, T, D, dtype="bfloat16")
    variables = filled(module, x, Context())
    y = jax.jit(module.apply)(variables, x, Context())
    assert y.dtype == jnp.bfloat16
    close(y, by_loops(variables["params"], x, SHAW, allowed=CAUSAL), times=2)


def test_the_config_survives_json_and_refuses_a_distance_below_1():
    assert from_json(to_json(SHAW), Mixer) == SHAW
    with pytest.raises(ValueError, match=r"ShawAttention.max_distance: expected more than 0, received 0"):
        SHAW.replace(max_distance=0)


def test_sinks_are_refused_where_calls_are_merged_and_count_where_there_is_one(close, normal, filled):
    with pytest.raises(ValueError, match=r"ShawAttention.sinks: expected False, received True: relative values merge .* set values=False"):
        SHAW.replace(sinks=True)
    config = SHAW.replace(values=False, sinks=True)
    module, x = shaw(config, "reference"), normal(B, T, D)
    variables = filled(module, x, Context())
    y, state = module.apply(variables, x, Context(), mutable=["intermediates"])
    shown = np.asarray(state["intermediates"]["probabilities"][0], np.float64)
    v = np.repeat(np.einsum("bsd,dnh->bsnh", x, variables["params"]["value"]["kernel"]), 2, axis=2)
    close(y, np.einsum("bnts,bsnh,nhd->btd", shown, v, variables["params"]["out"]["kernel"], dtype=np.float64))
    plain = by_loops(variables["params"], x, config, allowed=CAUSAL)
    assert np.abs(np.asarray(y) - plain).max() > 1e-2
