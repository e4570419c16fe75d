from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError

from pallas_kernels import masks, scores
from transformer_jax.layers import (
    Alibi,
    Attention,
    Build,
    Causal,
    Context,
    CrossAttention,
    LayerNorm,
    NoMask,
    RelativeBias,
    RMSNorm,
    Rope,
    SlidingWindow,
    Softcap,
)
from transformer_jax.precision import Precision

pytestmark = pytest.mark.usefixtures("quick_compile")

B, T, D = 2, 11, 19
q_at, k_at = np.arange(T)[:, None], np.arange(T)[None]
CAUSAL, WINDOW = k_at <= q_at, (q_at - 3 <= k_at) & (k_at <= q_at + 1)


def layer(config, backend="reference", **build):
    return config.make(Build(D, backend=backend, **build))


def peer(config, use_bias=False, normalize_qk=False):
    """flax's own attention of the same sizes, and the parameters that make it compute the same."""
    heads, width = config.num_heads, config.width(Build(D))
    module = nn.MultiHeadDotProductAttention(
        heads, qkv_features=heads * width, out_features=D, use_bias=use_bias, normalize_qk=normalize_qk, deterministic=True, precision="highest"
    )

    def copied(params):
        params = {name: dict(values) for name, values in params.items()}
        for name in ("key", "value"):
            params[name] = jax.tree.map(lambda a: jnp.repeat(a, heads // config.kv_heads, axis=-2), params[name])
        for name, shape in (("query", (heads, width)), ("key", (heads, width)), ("value", (heads, width)), ("out", (D,))):
            if use_bias:
                params[name].setdefault("bias", jnp.zeros(shape))
        for ours, theirs in (("query_norm", "query_ln"), ("key_norm", "key_ln")):
            if ours in params:
                params[theirs] = params.pop(ours)
        return {"params": params}

    return module, copied


@pytest.mark.parametrize(
    ("config", "allowed"),
    [
        (Attention(3, mask=NoMask(), head_dim=5), np.ones((T, T), bool)),
        (Attention(1, mask=Causal()), CAUSAL),
        (Attention(3, mask=Causal(), head_dim=5, qkv_bias=True, out_bias=True), CAUSAL),
        (Attention(6, mask=Causal(), head_dim=5, num_kv_heads=2, out_bias=True), CAUSAL),
        (Attention(6, mask=NoMask(), head_dim=7, num_kv_heads=1, qkv_bias=True), np.ones((T, T), bool)),
        (Attention(3, mask=SlidingWindow(3, right=1), head_dim=5, qk_norm=LayerNorm(1e-6, bias=False)), WINDOW),
    ],
    ids=["plain", "one_head_as_wide_as_the_model", "biases", "grouped", "multi_query", "qk_norm"],
)
def test_values_and_gradients_equal_flax_with_the_same_weights(close, normal, filled, config, allowed):
    module = layer(config, backend="auto")
    x, weight = normal(B, T, D), normal(B, T, D, seed=1)
    params = filled(module, x, Context())["params"]
    theirs, copied = peer(config, config.qkv_bias or config.out_bias, normalize_qk=isinstance(config.qk_norm, LayerNorm))
    mask = jnp.asarray(allowed)[None, None]

    def ours(params, x):
        y = module.apply({"params": params}, x, Context())
        return (y * weight).sum(), y

    def expected(params, x):
        y = theirs.apply(copied(params), x, mask=mask)
        return (y * weight).sum(), y

    (gradients, y), (other_gradients, other) = (jax.jit(jax.grad(f, (0, 1), has_aux=True))(params, x) for f in (ours, expected))
    assert y.shape == (B, T, D)
    close(y, other)
    close(gradients, other_gradients, times=3)


def attend(params, x, config, *, allowed, memory=None, score=lambda s: s, normalise=lambda q: q, turn=lambda q: q, scale=None):
    """The module's formula in numpy, float64."""
    p, x = jax.tree.map(lambda a: np.asarray(a, np.float64), params), np.asarray(x, np.float64)
    seen = x if memory is None else np.asarray(memory, np.float64)
    q, k, v = (np.einsum("btd,dnh->btnh", a, p[name]["kernel"]) for name, a in (("query", x), ("key", seen), ("value", seen)))
    q, k = (turn(normalise(a)) for a in (q, k))
    k, v = (np.repeat(a, config.num_heads // config.kv_heads, axis=2) for a in (k, v))
    s = score(np.einsum("btnh,bsnh->bnts", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale))
    e = np.where(allowed, np.exp(s - s.max(-1, keepdims=True)), 0)
    total = e.sum(-1, keepdims=True)
    if config.sinks:
        total = total + np.exp(p["sinks"][:, None, None] - s.max(-1, keepdims=True))
    o = np.einsum("bnts,bsnh->btnh", e / np.where(total == 0, 1, total), v)
    return np.einsum("btnh,nhd->btd", o, p["out"]["kernel"])


def compare(close, normal, filled, config, times=1, context=None, **how):
    module, x = layer(config), normal(B, T, D)
    variables = filled(module, x, Context())
    y = jax.jit(module.apply)(variables, x, Context() if context is None else context)
    close(y, attend(variables["params"], x, config, **how), times=times)


BOTH = Causal() & SlidingWindow(3, right=1)


@pytest.mark.parametrize(
    ("mask", "allowed"),
    [
        (BOTH, CAUSAL & WINDOW),
        (Causal() | SlidingWindow(3, right=1), CAUSAL | WINDOW),
        (~Causal(), ~CAUSAL),
        (~BOTH, ~(CAUSAL & WINDOW)),
        (~~Causal(), CAUSAL),
        (Causal() & NoMask(), CAUSAL),
        (NoMask() & Causal(), CAUSAL),
        (Causal() | NoMask(), np.ones((T, T), bool)),
    ],
    ids=["and", "or", "not", "not_and", "not_not", "and_none", "none_and", "or_none"],
)
def test_masks_combine_as_booleans_do_and_a_row_with_nothing_allowed_gives_0(close, normal, filled, mask, allowed):
    compare(close, normal, filled, Attention(2, mask=mask, head_dim=5), allowed=allowed)


def test_the_call_s_mask_is_added_to_the_layer_s_own(close, normal, filled):
    own = jnp.asarray(np.random.default_rng(0).random((B, T)) < 0.6)
    compare(
        close, normal, filled, Attention(2, mask=Causal(), head_dim=5), context=Context(mask=masks.valid(own)), allowed=CAUSAL & np.asarray(own)[:, None, None]
    )


def test_scale_replaces_head_dim_to_the_minus_a_half(close, normal, filled):
    compare(close, normal, filled, Attention(2, mask=Causal(), head_dim=5, scale=1.7), allowed=CAUSAL, scale=1.7)


@pytest.mark.parametrize("over", ["head", "heads"])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_queries_and_keys_are_normed_by_head_or_all_heads_at_once_before_they_are_turned(close, normal, filled, over, kv_heads):
    config = Attention(4, mask=Causal(), head_dim=6, num_kv_heads=kv_heads, qk_norm=RMSNorm(1e-3), qk_norm_over=over, position=Rope(100.0, fraction=0.7))
    module, x = layer(config), normal(B, T, D)
    variables = filled(module, x, Context())
    positions = np.asarray([np.arange(T) + 5, np.arange(T)[::-1]])
    scales = [np.asarray(variables["params"][name]["scale"], np.float64) for name in ("query_norm", "key_norm")]
    assert [scale.shape for scale in scales] == ([(6,), (6,)] if over == "head" else [(24,), (kv_heads * 6,)])

    def normalise(a):
        scale, axes = scales[0 if a.shape[2] == 4 else 1], -1 if over == "head" else (-2, -1)
        return a / np.sqrt((a * a).mean(axes, keepdims=True) + 1e-3) * (scale if over == "head" else scale.reshape(a.shape[2:]))

    def turn(a):
        angle = positions[:, :, None, None] * 100.0 ** (-np.arange(0, 4, 2) / 4)
        z = (a[..., :2] + 1j * a[..., 2:4]) * np.exp(1j * angle)
        return np.concatenate([z.real, z.imag, a[..., 4:]], -1)

    y = jax.jit(module.apply)(variables, x, Context(positions=jnp.asarray(positions)))
    allowed = (positions[:, None, :] <= positions[:, :, None])[:, None]
    close(y, attend(variables["params"], x, config, allowed=allowed, normalise=normalise, turn=turn))


@pytest.mark.parametrize("mask", [Causal(), ~Causal()], ids=["causal", "a_row_with_nothing_allowed"])
def test_sinks_take_their_share_of_each_head_s_probabilities_and_have_no_value(close, normal, filled, mask):
    config = Attention(6, mask=mask, head_dim=5, num_kv_heads=2, sinks=True, score=(Softcap(0.5),))
    compare(close, normal, filled, config, allowed=CAUSAL if mask == Causal() else ~CAUSAL, score=lambda s: 0.5 * np.tanh(s / 0.5))


def test_sinks_have_a_gradient_start_at_0_and_are_read_in_float32(close, normal, filled):
    config, x = Attention(3, mask=Causal(), head_dim=5, sinks=True), normal(B, T, D)
    module = layer(config, backend="auto")
    params = filled(module, x, Context())["params"]
    assert params["sinks"].shape == (3,)
    assert not module.init(jax.random.key(0), x, Context())["params"]["sinks"].any()

    def total(sinks):
        return (module.apply({"params": {**params, "sinks": sinks}}, x, Context()) ** 2).sum()

    def expected(sinks):
        return (attend({**params, "sinks": sinks}, x, config, allowed=CAUSAL) ** 2).sum()

    step = 1e-4 * np.eye(3)
    sinks = np.asarray(params["sinks"], np.float64)
    close(jax.jit(jax.grad(total))(params["sinks"]), [(expected(sinks + d) - expected(sinks - d)) / 2e-4 for d in step], times=3)
    low = layer(config, backend="auto", precision=Precision("bfloat16", compute="bfloat16"))
    sinks = jax.make_jaxpr(low.apply)({"params": jax.tree.map(lambda a: a.astype("bfloat16"), params)}, x.astype("bfloat16"), Context())
    assert "f32[3]" in str(sinks)


def test_sinks_count_in_attention_to_a_memory_and_in_what_is_shown_of_probabilities(close, normal, filled):
    config = CrossAttention(2, head_dim=5, sinks=True)
    module, x, memory = layer(config), normal(B, T, D), normal(B, 7, D, seed=1)
    context = Context(memory=memory)
    variables = filled(module, x, context)
    y, state = module.apply(variables, x, context, mutable=["intermediates"])
    expected = partial(attend, x=x, config=config, allowed=np.ones((T, 7), bool), memory=memory)
    close(y, expected(variables["params"]))
    shown = np.asarray(state["intermediates"]["probabilities"][0])
    v = np.einsum("bsd,dnh->bsnh", memory, variables["params"]["value"]["kernel"])
    close(jnp.einsum("btnh,nhd->btd", np.einsum("bnts,bsnh->btnh", shown, v), variables["params"]["out"]["kernel"]), np.asarray(y, np.float64))
    assert shown.sum(-1).mean() < 0.98


def test_queries_and_keys_of_a_memory_are_normed_over_all_heads_at_once(close, normal, filled):
    config = CrossAttention(4, head_dim=3, num_kv_heads=2, qk_norm=RMSNorm(1e-3), qk_norm_over="heads")
    module, x, memory = layer(config), normal(B, T, D), normal(B, 7, D, seed=1)
    variables = filled(module, x, Context(memory=memory))
    scales = {n: np.asarray(variables["params"][name]["scale"], np.float64).reshape(n, 3) for n, name in ((4, "query_norm"), (2, "key_norm"))}

    def normalise(a):
        return a / np.sqrt((a * a).mean((-2, -1), keepdims=True) + 1e-3) * scales[a.shape[2]]

    y = jax.jit(module.apply)(variables, x, Context(memory=memory))
    close(y, attend(variables["params"], x, config, allowed=np.ones((T, 7), bool), memory=memory, normalise=normalise))


SLOPES = np.asarray([2.0**-4, 2.0**-8])[:, None, None]


@pytest.mark.parametrize(
    ("score", "formula"),
    [
        ((Softcap(0.5),), lambda s: 0.5 * np.tanh(s / 0.5)),
        ((Alibi(),), lambda s: s - SLOPES * abs(q_at - k_at)),
        ((Softcap(0.5), Alibi()), lambda s: 0.5 * np.tanh(s / 0.5) - SLOPES * abs(q_at - k_at)),
        ((Alibi(), Softcap(0.5)), lambda s: 0.5 * np.tanh((s - SLOPES * abs(q_at - k_at)) / 0.5)),
    ],
    ids=["softcap", "alibi", "softcap_then_alibi", "alibi_then_softcap"],
)
def test_scores_are_applied_to_scaled_products_in_the_order_given(close, normal, filled, score, formula):
    compare(close, normal, filled, Attention(2, mask=Causal(), head_dim=5, score=score), allowed=CAUSAL, score=formula)


def test_the_stack_s_scores_come_before_the_layer_s_own(close, normal, filled):
    config = Attention(2, mask=Causal(), head_dim=5, score=(Alibi(),))
    outer = Context(score=(scores.softcap(0.5),))
    compare(close, normal, filled, config, context=outer, allowed=CAUSAL, score=lambda s: 0.5 * np.tanh(s / 0.5) - SLOPES * abs(q_at - k_at))


def test_a_step_at_a_time_equals_the_whole_and_the_cache_lies_batch_heads_slots_features(close, normal, filled):
    config = Attention(4, mask=Causal(), head_dim=6, num_kv_heads=2, position=Rope(), score=(RelativeBias(8, max_distance=16),))
    build = Build(D, backend="reference")
    module, x = config.make(build), normal(B, 5, D)
    variables = filled(module, x, Context())
    cache = config.init_cache(build, B, 7)
    assert {name: a.shape for name, a in cache.items()} == {"key": (B, 2, 7, 6), "value": (B, 2, 7, 6)}
    kv_positions = jnp.broadcast_to(jnp.arange(7), (B, 7))
    steps = []
    for n, (start, stop) in enumerate([(0, 2), (2, 3), (3, 5)]):
        context = Context(jnp.broadcast_to(jnp.arange(start, stop), (B, stop - start)), kv_positions=kv_positions, index=jnp.int32(start))
        y, cache = jax.jit(partial(module.apply, method="step"))(variables, x[:, start:stop], context, cache)
        steps.append(y)
        assert (np.asarray(cache["key"])[:, :, stop:] == 0).all(), n
    close(np.concatenate(steps, 1), jax.jit(module.apply)(variables, x, Context()))


def test_dropout_is_drawn_from_its_key_and_only_in_training(normal, filled):
    config = Attention(3, mask=Causal(), head_dim=5, dropout=0.5)
    x = normal(B, T, D)
    training, still = layer(config, training=True), layer(config)
    variables = filled(still, x, Context())
    run = jax.jit(lambda key: training.apply(variables, x, Context(), rngs={"dropout": key}))
    one, again, other = (run(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    plain = still.apply(variables, x, Context())
    np.testing.assert_array_equal(plain, layer(config.replace(dropout=0.0), training=True).apply(variables, x, Context()))
    # Each output's mean over keys is the output without dropout.
    many = np.asarray(jax.lax.map(run, jax.random.split(jax.random.key(2), 400)), np.float64)
    error = (many.mean(0) - np.asarray(plain)) / (many.std(0) / 20 + 1e-6)
    assert np.abs(error).max() < 5
    assert many.std(0)[:, 1:].min() > 1e-3


def test_dropout_needs_a_stream_of_randomness(normal, filled):
    training = layer(Attention(3, mask=Causal(), head_dim=5, dropout=0.5), training=True)
    x = normal(B, T, D)
    with pytest.raises(InvalidRngError, match="dropout"):
        training.apply(filled(layer(training.config), x, Context()), x, Context())


def test_a_width_that_heads_do_not_divide_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"Attention.num_heads: expected a divisor of d_model = 19, received 2; choose another, or set head_dim"):
        Attention(2, mask=Causal()).make(Build(D))
