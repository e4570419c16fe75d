from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import masks
from transformer_jax.config import from_json, to_json
from transformer_jax.layers import (
    Alibi,
    Build,
    Causal,
    Context,
    Dense,
    Group,
    LatentAttention,
    LayerNorm,
    Learned,
    Mixer,
    NoMask,
    NoNorm,
    RelativeBias,
    Residual,
    RMSNorm,
    Rope,
    SlidingWindow,
    Softcap,
    Stack,
    T5Init,
)
from transformer_jax.models import DecoderOnlyConfig, EncoderOnlyConfig, unstacked
from transformer_jax.precision import Precision

pytestmark = pytest.mark.usefixtures("quick_compile")
B, T, D = 2, 11, 19
q_at, k_at = np.arange(T)[:, None], np.arange(T)[None]
CAUSAL, ALL = k_at <= q_at, np.ones((T, T), bool)
LATENT = LatentAttention(3, q_rank=13, kv_rank=7, nope_head_dim=5, rope_head_dim=4, value_head_dim=2, mask=Causal(), position=Rope(100.0))
CASES = {
    "causal": (LATENT, CAUSAL),
    "queries_from_x": (LATENT.replace(q_rank=None, mask=NoMask()), ALL),
    "biases": (LATENT.replace(qkv_bias=True, out_bias=True), CAUSAL),
    "biases_and_queries_from_x": (LATENT.replace(q_rank=None, qkv_bias=True), CAUSAL),
    "no_norms_or_positions": (LATENT.replace(q_norm=NoNorm(), kv_norm=NoNorm(), position=LATENT.position.replace(fraction=0.5)), CAUSAL),
    "nothing_for_some": (LATENT.replace(mask=~Causal(), value_head_dim=11), ~CAUSAL),
    "scale": (LATENT.replace(scale=1.7, mask=SlidingWindow(4, right=1)), (q_at - 4 <= k_at) & (k_at <= q_at + 1)),
    "sinks": (LATENT.replace(sinks=True), CAUSAL),
    "scores": (LATENT.replace(score=(Softcap(0.5), Alibi())), CAUSAL),
}


def latent(config, backend="auto", **build):
    return config.make(Build(D, backend=backend, **build))


def by_loops(params, x, config, *, allowed, positions=None):
    """Section 2.1 (appendix C), one head, query and key at a time: k = [W_uk c; RoPE(W_kr h)], q = [W_uq c'; RoPE(W_qr c')], v = W_uv c."""
    p, x = jax.tree.map(lambda a: np.asarray(a, np.float64), params), np.asarray(x, np.float64)
    positions = np.broadcast_to(np.arange(T), (len(x), T)) if positions is None else positions
    allowed = np.broadcast_to(allowed, (len(x), T, T))
    nope, rank, pairs = config.nope_head_dim, config.kv_rank, int(config.rope_head_dim * config.position.fraction) // 2
    scale = (nope + config.rope_head_dim) ** -0.5 if config.scale is None else config.scale
    y = np.zeros_like(x)

    def norm(name, kind, a):
        return a if kind == NoNorm() else a / np.sqrt((a * a).mean() + 1e-6) * p[name]["scale"]

    def turn(a, position):
        angles = position * 100.0 ** (-np.arange(pairs) / pairs)
        first, second, rest = np.split(a, [pairs, 2 * pairs])
        return np.concatenate([first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles), rest])

    def linear(name, a, *at):
        return a @ p[name]["kernel"][(slice(None), *at)] + (p[name]["bias"][at] if "bias" in p[name] else 0)

    for b, n, t in np.ndindex(len(x), config.num_heads, T):
        if config.q_rank is None:
            q = linear("query", x[b, t], n)
        else:
            q = linear("query_up", norm("query_down_norm", config.q_norm, linear("query_down", x[b, t])), n)
        q = np.concatenate([q[:nope], turn(q[nope:], positions[b, t])])
        e, values = [], []
        for s in np.flatnonzero(allowed[b, t]):
            down = linear("kv_down", x[b, s])
            up = linear("kv_up", norm("kv_norm", config.kv_norm, down[:rank]), n)
            k = np.concatenate([up[:nope], turn(down[rank:], positions[b, s])])
            logit = scale * (q @ k)
            if config.score:
                logit = 0.5 * np.tanh(logit / 0.5) - abs(positions[b, t] - positions[b, s]) * [2.0**-4, 2.0**-8, 2.0**-2][n]
            e.append(logit)
            values.append(up[nope:])
        if e:
            weights = np.exp(e)
            total = weights.sum() + (np.exp(p["sinks"][n]) if config.sinks else 0)
            y[b, t] += weights @ np.asarray(values) / total @ p["out"]["kernel"][n]
    return y + p["out"].get("bias", 0)


@pytest.mark.parametrize("backend", ["reference", "blockwise"])
@pytest.mark.parametrize("case", CASES)
def test_equals_loops_over_heads_queries_and_keys(close, normal, filled, case, backend):
    config, allowed = CASES[case]
    module, x = latent(config, backend), normal(B, T, D)
    variables = filled(module, x, Context())
    close(jax.jit(module.apply)(variables, x, Context()), by_loops(variables["params"], x, config, allowed=allowed), times=2)


def test_parameters_are_as_documented():
    shapes = jax.eval_shape(latent(LATENT.replace(sinks=True, qkv_bias=True, out_bias=True)).init, jax.random.key(0), jnp.zeros((B, T, D)), Context())["params"]
    assert jax.tree.map(lambda a: a.shape, shapes) == {
        "query_down": {"kernel": (D, 13), "bias": (13,)},
        "query_down_norm": {"scale": (13,)},
        "query_up": {"kernel": (13, 3, 9)},
        "kv_down": {"kernel": (D, 11), "bias": (11,)},
        "kv_norm": {"scale": (7,)},
        "kv_up": {"kernel": (7, 3, 7)},
        "out": {"kernel": (3, 2, D), "bias": (D,)},
        "sinks": (3,),
    }
    shapes = jax.eval_shape(latent(LATENT.replace(q_rank=None)).init, jax.random.key(0), jnp.zeros((B, T, D)), Context())["params"]
    assert set(shapes) == {"query", "kv_down", "kv_norm", "kv_up", "out"} and shapes["query"]["kernel"].shape == (D, 3, 9)


def test_positions_and_the_call_s_mask_count(close, normal, filled):
    module, x = latent(LATENT), normal(B, T, D)
    variables = filled(module, x, Context())
    positions, valid = np.stack([np.arange(T) + 5, np.arange(T)[::-1]]), np.random.default_rng(0).random((B, T)) < 0.6
    y = jax.jit(module.apply)(variables, x, Context(jnp.asarray(positions), mask=masks.valid(jnp.asarray(valid))))
    allowed = (positions[:, None] <= positions[:, :, None]) & valid[:, None]
    close(y, by_loops(variables["params"], x, LATENT, allowed=allowed, positions=positions), times=2)


def stepped(config, variables, x, build, slots, runs):
    module, cache, steps = config.make(build), config.init_cache(build, B, slots), []
    for start, stop in runs:
        context = Context(jnp.broadcast_to(jnp.arange(start, stop), (B, stop - start)), kv_positions=jnp.arange(slots)[None], index=jnp.int32(start))
        y, cache = jax.jit(partial(module.apply, method="step"))(variables, x[:, start:stop], context, cache)
        steps.append(y)
    return np.concatenate(steps, 1), cache


@pytest.mark.parametrize("case", ["causal", "biases_and_queries_from_x", "no_norms_or_positions", "sinks", "scores", "scale"])
def test_a_step_at_a_time_equals_the_whole_though_it_makes_no_keys_of_heads(close, normal, filled, case):
    config = CASES[case][0].replace(mask=Causal())
    build, x = Build(D), normal(B, T, D)
    variables = filled(config.make(build), x, Context())
    y, cache = stepped(config, variables, x, build, 13, [(0, 4), (4, 5), (5, 6), (6, 11)])
    close(y, jax.jit(config.make(build).apply)(variables, x, Context()), times=2)
    assert {name: a.shape for name, a in cache.items()} == {"latent": (B, 13, 7 + 4)}
    assert not np.asarray(cache["latent"])[:, 11:].any()


def test_no_array_of_a_step_has_both_heads_and_slots_but_probabilities(shapes_in, normal):
    config, slots = LATENT.replace(num_heads=5), 101
    module, build = latent(config, "reference"), Build(D)
    x, cache = jnp.zeros((B, 1, D), jnp.float32), config.init_cache(build, B, slots)
    variables = jax.eval_shape(module.init, jax.random.key(0), x, Context())
    context = Context(jnp.zeros((B, 1), jnp.int32), kv_positions=jnp.arange(slots)[None], index=jnp.int32(0))
    shapes = shapes_in(jax.make_jaxpr(partial(module.apply, method="step"))(variables, x, context, cache))
    large = {shape for shape in shapes if slots in shape and int(np.prod(shape)) > B * slots * (7 + 4)}
    assert not large, large


@pytest.mark.parametrize("case", ["causal", "queries_from_x", "sinks"])
def test_gradients_are_finite_and_equal_differences(normal, filled, case):
    config, allowed = CASES[case]
    module, x, weight = latent(config), normal(B, T, D), np.asarray(normal(B, T, D, seed=1), np.float64)
    params = filled(module, x, Context())["params"]
    direction = jax.tree.map(lambda a: np.asarray(normal(*a.shape, seed=3), np.float64), params)
    gradients = jax.jit(jax.grad(lambda params: (module.apply({"params": params}, x, Context()) * weight).sum()))(params)
    assert all(np.isfinite(a).all() and np.abs(a).max() > 0 for a in jax.tree.leaves(gradients))

    def along(step):
        moved = jax.tree.map(lambda a, d: np.asarray(a, np.float64) + step * d, params, direction)
        return (by_loops(moved, x, config, allowed=allowed) * weight).sum()

    slope = sum((np.asarray(g, np.float64) * d).sum() for g, d in zip(jax.tree.leaves(gradients), jax.tree.leaves(direction)))
    np.testing.assert_allclose(slope, (along(1e-5) - along(-1e-5)) / 2e-5, rtol=1e-4)


def test_dropout_is_of_the_probabilities_and_only_in_training(close, normal, filled):
    config, x = LATENT.replace(dropout=0.5), normal(B, T, D)
    training, still = latent(config, training=True), latent(config)
    variables = filled(still, x, Context())
    run = jax.jit(lambda key: training.apply(variables, x, Context(), rngs={"dropout": key}))
    np.testing.assert_array_equal(run(jax.random.key(0)), run(jax.random.key(0)))
    assert not np.array_equal(run(jax.random.key(0)), run(jax.random.key(1)))
    close(jax.jit(still.apply)(variables, x, Context()), by_loops(variables["params"], x, config, allowed=CAUSAL), times=2)


def test_half_precision_rounds_and_no_more_whole_and_in_steps(close, normal, filled):
    build, x = Build(D, precision=Precision(compute="bfloat16")), normal(B, T, D, dtype="bfloat16")
    variables = filled(LATENT.make(build), x, Context())
    expected = by_loops(variables["params"], x, LATENT, allowed=CAUSAL)
    y = jax.jit(LATENT.make(build).apply)(variables, x, Context())
    assert y.dtype == jnp.bfloat16
    close(y, expected, times=2)
    y, cache = stepped(LATENT, variables, x, build, T, [(0, 7), (7, 8), (8, 11)])
    assert cache["latent"].dtype == jnp.bfloat16
    close(jnp.asarray(y), expected, times=2)


def test_models_hold_it_in_either_layout_and_step_with_it_and_the_stack_s_score(close, filled):
    sublayers = Residual(LATENT, pre=RMSNorm()), Residual(Dense(23), pre=RMSNorm())
    stack = Stack((Group(3, sublayers),), final_norm=RMSNorm(), score=(RelativeBias(8, max_distance=16),))
    model = DecoderOnlyConfig(29, d_model=D, max_length=13, stack=stack).make()
    tokens = np.random.default_rng(0).integers(0, 29, (B, T)).astype(np.int32)
    variables = filled(model, tokens)
    whole = jax.jit(model.apply)(variables, tokens)
    flat, flat_variables = unstacked(model, variables)
    close(jax.jit(flat.apply)(flat_variables, tokens), np.asarray(whole, np.float64))
    for m, v in ((model, variables), (flat, flat_variables)):
        cache, logits = m.init_cache(B, 13), []
        assert sum(a.size for a in jax.tree.leaves(cache.layers)) == 3 * B * 13 * (7 + 4)
        for start, stop in [(0, 5), (5, 6), (6, T)]:
            y, cache = jax.jit(partial(m.apply, method="step"))(v, tokens[:, start:stop], cache)
            logits.append(y)
        close(jnp.concatenate(logits, 1), np.asarray(whole, np.float64), times=2)


def test_an_encoder_holds_it_and_padding_changes_nothing(close, filled):
    stack = Stack((Group(2, (Residual(LATENT.replace(mask=NoMask()), after=LayerNorm()),)),))
    model = EncoderOnlyConfig(29, d_model=D, max_length=13, stack=stack).make()
    tokens = np.random.default_rng(0).integers(0, 29, (B, T)).astype(np.int32)
    variables = filled(model, tokens)
    valid = np.zeros((B, 13), bool)
    valid[:, 2:] = True
    apply = jax.jit(model.apply)
    padded = apply(variables, np.pad(tokens, ((0, 0), (2, 0)), constant_values=7), valid=valid)
    close(padded[:, 2:], np.asarray(apply(variables, tokens), np.float64), times=2)


def test_a_recipe_for_queries_counts_once():
    module = LATENT.make(Build(1021, initialization=T5Init(9)))
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 1, 1021)), Context())["params"]
    np.testing.assert_allclose(np.std(params["query_down"]["kernel"]), 1021**-0.5, rtol=0.05)
    np.testing.assert_allclose(np.std(params["query_up"]["kernel"]), (13 * 9) ** -0.5, rtol=0.15)


def test_the_config_survives_json_and_refuses_what_cannot_be():
    assert from_json(to_json(LATENT), Mixer) == LATENT
    for name in ("num_heads", "q_rank", "kv_rank", "nope_head_dim", "rope_head_dim", "value_head_dim"):
        with pytest.raises(ValueError, match=rf"LatentAttention.{name}: expected more than 0, received 0"):
            LATENT.replace(**{name: 0})
    with pytest.raises(ValueError, match=r"LatentAttention.dropout: expected a rate in \[0, 1\), received 1"):
        LATENT.replace(dropout=1.0)
    with pytest.raises(TypeError, match=r"LatentAttention.position: expected a scheme that acts on heads, received Learned"):
        LATENT.replace(position=Learned())
