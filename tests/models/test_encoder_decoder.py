from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_jax import EncoderDecoder
from transformer_jax.layers import (
    Attention,
    Causal,
    CrossAttention,
    Dense,
    Embedding,
    Gated,
    Group,
    LanguageModel,
    LayerNorm,
    Learned,
    NoMask,
    RelativeBias,
    Residual,
    RMSNorm,
    Sinusoidal,
    Stack,
)
from transformer_jax.models import EncoderDecoderConfig, residual_stream, stacked, unstacked

pytestmark = pytest.mark.usefixtures("quick_compile")
B, S, T, V, D, N = 2, 11, 7, 29, 12, 3


def vaswani():
    def after(layer):
        return Residual(layer, after=LayerNorm())

    biases = {"qkv_bias": True, "out_bias": True}
    looking, causal, cross = Attention(N, mask=NoMask(), **biases), Attention(N, mask=Causal(), **biases), CrossAttention(N, **biases)
    mlp = after(Dense(17, activation="relu", bias=True))
    embedding = Embedding(Sinusoidal(), scale=True)
    return EncoderDecoderConfig(
        V, d_model=D, max_length=13, source_embedding=embedding, target_embedding=embedding,
        encoder=Stack((Group(2, (after(looking), mlp)),)), decoder=Stack((Group(2, (after(causal), after(cross), mlp)),)),
    )  # fmt: skip


def t5():
    def pre(layer):
        return Residual(layer, pre=RMSNorm())

    mlp = pre(Gated(13, activation="gelu_tanh"))
    table = RelativeBias(6, max_distance=9, bidirectional=True)
    encoder = Stack((Group(3, (pre(Attention(4, mask=NoMask(), num_kv_heads=2)), mlp)),), final_norm=RMSNorm(), score=(table,))
    decoder = Group(2, (pre(Attention(4, mask=Causal(), head_dim=5)), pre(CrossAttention(6, num_kv_heads=2, qk_norm=RMSNorm())), mlp))
    return EncoderDecoderConfig(
        V, d_model=D, max_length=13, encoder=encoder, decoder=Stack((decoder,), final_norm=RMSNorm(), score=(RelativeBias(6, max_distance=9),)),
        head=LanguageModel(tied=False),
    )  # fmt: skip


def bart():
    mlp = Residual(Dense(7), pre=LayerNorm())
    encoder = Stack((Group(2, (Residual(Attention(2, mask=NoMask()), pre=LayerNorm()), mlp)),))
    decoder = Stack((Group(1, (Residual(Attention(2, mask=Causal()), pre=LayerNorm()), Residual(CrossAttention(2), pre=LayerNorm()), mlp)),))
    embedding = Embedding(Learned(), token_types=2)
    return EncoderDecoderConfig(
        V, d_model=D, max_length=13, encoder=encoder, decoder=decoder, source_embedding=embedding, target_embedding=embedding, share_embedding=False
    )  # fmt: skip


CONFIGS = {"vaswani": vaswani(), "t5": t5(), "bart": bart()}


# Of all three in CI; by default the one that differs most from the others.
@pytest.fixture(scope="module", params=[name if name == "t5" else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS])
def m(request, filled):
    return made(request.param, filled)


def made(name, filled):
    model = CONFIGS[name].make()
    some = jnp.zeros((1, 2), jnp.int32)
    step = jax.jit(partial(model.apply, method="step"))
    return model, filled(model, some, some), jax.jit(model.apply), step


def tokens_of(seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, V, (B, S)).astype("int32"), rng.integers(0, V, (B, T)).astype("int32")


def published(params, source, target, source_valid):
    """The 2017 model out of flax's own parts."""
    norm = lambda p, x: nn.LayerNorm(epsilon=1e-5).apply({"params": p}, x)  # noqa: E731
    heads = nn.MultiHeadDotProductAttention(num_heads=N, qkv_features=D)
    dense = lambda p, x: nn.Dense(p["kernel"].shape[1]).apply({"params": p}, x)  # noqa: E731
    at = np.arange(13)[:, None] / 10000 ** (np.arange(0, D, 2) / D)
    table, sines = params["source_embedding"]["embedding"], np.stack([np.sin(at), np.cos(at)], -1).reshape(13, D)

    def sublayers(stack, x, mask, memory, memory_mask):
        for n in range(2):
            each = jax.tree.map(lambda a, n=n: a[n], params[stack]["groups_0"]["layers"])
            for k in range(len(each)):
                p = each[f"sublayers_{k}"]
                if "up" in p["layer"]:
                    y = dense(p["layer"]["down"], nn.relu(dense(p["layer"]["up"], x)))
                elif stack == "decoder" and k == 1:
                    y = heads.apply({"params": p["layer"]}, x, memory, mask=memory_mask)
                else:
                    y = heads.apply({"params": p["layer"]}, x, x, mask=mask)
                x = norm(p["after"], x + y)
        return x

    embed = lambda tokens: table[tokens] * D**0.5 + sines[: tokens.shape[1]]  # noqa: E731
    seen = source_valid[:, None, None, :]
    memory = sublayers("encoder", embed(source), seen, None, None)
    return sublayers("decoder", embed(target), np.tri(T, dtype=bool)[None, None], memory, seen) @ table.T


def test_it_is_the_model_of_2017(filled, close):
    _, variables, apply, _ = made("vaswani", filled)
    source, target = tokens_of(0)
    valid = np.arange(S) < np.array([[S], [4]])
    logits = apply(variables, source, target, source_valid=valid)
    assert logits.shape == (B, T, V)
    close(logits, published(variables["params"], source, target, valid))


def test_steps_of_any_sizes_equal_the_whole(m, close):
    model, variables, apply, step = m

    @settings(max_examples=settings.default.max_examples // 2)
    @given(cut=st.integers(1, T - 1), pad=st.integers(0, 5), seed=st.integers(0, 99), preallocated=st.booleans())
    def check(cut, pad, seed, preallocated):
        source, target = tokens_of(seed)
        valid = np.arange(S) >= np.array([[0], [pad]])
        memory = model.apply(variables, source, valid=valid, method="encode")
        cache = model.init_cache(B, 9, S if preallocated else 0)
        first, cache = step(variables, target[:, :cut], cache, memory, valid)
        second, cache = step(variables, target[:, cut:], cache)
        whole = apply(variables, source, target, source_valid=valid)
        close(jnp.concatenate([first, second], 1), whole, times=3)

    check()


def test_the_sources_padding_may_be_anything_on_either_side(m, close):
    _, variables, apply, _ = m
    source, target = tokens_of(1)
    short = source[:, :6]
    expected = apply(variables, short, target)
    rng = np.random.default_rng(7)
    for left in (0, 2, S - 6):
        padded = rng.integers(-9, 99, (B, S)).astype("int32")
        padded[:, left : left + 6] = short
        valid = np.zeros((B, S), bool)
        valid[:, left : left + 6] = True
        close(apply(variables, padded, target, source_valid=valid), expected, times=3)


def test_packed_pairs_equal_separate_ones(m, close):
    _, variables, apply, _ = m
    source, target = tokens_of(2)
    a, b = 5, 3
    ids, positions = ((np.arange(n) >= cut).astype("int32") for n, cut in ((S, a), (T, b))), []
    source_ids, target_ids = (np.tile(x, (B, 1)) for x in ids)
    positions = [np.tile(np.r_[0:cut, 0 : n - cut].astype("int32"), (B, 1)) for n, cut in ((S, a), (T, b))]
    packed = apply(
        variables, source, target, source_segment_ids=source_ids, target_segment_ids=target_ids, source_positions=positions[0], target_positions=positions[1]
    )  # fmt: skip
    separate = [apply(variables, source[:, :a], target[:, :b]), apply(variables, source[:, a:], target[:, b:])]
    close(packed, jnp.concatenate(separate, 1), times=3)


def test_a_token_sees_the_whole_source_and_no_later_target(m):
    _, variables, apply, _ = m
    source, target = tokens_of(3)
    other = target.copy()
    other[:, 4:] = (other[:, 4:] + 1) % V
    np.testing.assert_array_equal(apply(variables, source, target)[:, :4], apply(variables, source, other)[:, :4])
    changed = source.copy()
    changed[:, -1] = (changed[:, -1] + 1) % V
    assert (np.abs(apply(variables, source, target) - apply(variables, changed, target)).max((0, 2)) > 1e-4).all()


@pytest.mark.slow
def test_unstacked_and_back_changes_no_bit_and_both_streams_can_be_looked_at(m, close):
    model, variables, apply, _ = m
    source, target = tokens_of(4)
    single, each = unstacked(model, variables)
    again, back = stacked(single, each)
    assert again == model and jax.tree.structure(back) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    close(single.apply(each, source, target), apply(variables, source, target))
    for stack, length in (("encoder", S), ("decoder", T), ("", T)):
        x = residual_stream(model, variables, source, target, stack=stack)
        assert x.shape == (vars(model.config)[stack or "decoder"].groups[0].repeat, B, length, D)
        close(residual_stream(single, each, source, target, stack=stack), x)
    with pytest.raises(ValueError, match="stack: expected one of encoder, decoder, received 'middle'"):
        residual_stream(model, variables, source, target, stack="middle")


def test_features_and_unembedding_are_the_two_halves(m, close):
    model, variables, apply, _ = m
    source, target = tokens_of(5)
    x, unembedding = model.apply(variables, source, target, method="prelogits")
    close(x, model.apply(variables, source, target, method="features"))
    close(unembedding(x), apply(variables, source, target))


def test_init_gives_parameters_only_and_a_shared_table_once():
    some = jnp.zeros((1, 2), jnp.int32)
    for name, config in CONFIGS.items():
        shapes = jax.eval_shape(config.make().init, jax.random.key(0), some, some)
        assert set(shapes) == {"params"}
        tables = sum(leaf.shape == (V, D) for leaf in jax.tree.leaves(shapes))
        assert tables == {"vaswani": 1, "t5": 1, "bart": 2}[name]


def test_token_types_are_added_on_their_side(filled):
    _, variables, apply, _ = made("bart", filled)
    source, target = tokens_of(6)
    plain = apply(variables, source, target)
    np.testing.assert_array_equal(apply(variables, source, target, source_token_types=np.zeros((B, S), "int32")), plain)
    assert np.abs(apply(variables, source, target, target_token_types=np.ones((B, T), "int32")) - plain).max() > 0.01


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, v, s, t: m.apply(v, s, t, valid=s > 0), TypeError, r"no option 'valid'; it takes source_positions, .*, target_mask"),
        (lambda m, v, s, t: m.apply(v, s, t, source_valid=t > 0), ValueError, r"source_valid: expected the shape of source, \(2, 11\), received \(2, 7\)"),
        (lambda m, v, s, t: m.apply(v, np.tile(s, 2), t), ValueError, "source: expected at most max_length = 13 to a sequence, received 22"),
        (lambda m, v, s, t: m.apply(v, s, np.tile(t, 2)), ValueError, "target: expected at most max_length = 13 to a sequence, received 14"),
        (lambda m, v, s, t: m.apply(v, s, t, source_token_types=s), ValueError, "token_types: expected none, for the model has none"),
        (lambda m, v, s, t: m.apply(v, s, t, target_mask=3), TypeError, "target_mask: expected"),
        (lambda m, v, s, t: m.apply(v, t, m.init_cache(B, 9), method="step"), ValueError, "memory: expected that of `encode` at the first step"),
        (lambda m, v, s, t: m.apply(v, t, m.init_cache(B, 9), memory_valid=s > 0, method="step"), ValueError, "memory_valid: expected none without a memory"),
        (lambda m, v, s, t: EncoderDecoder(3).init(jax.random.key(0), s, t), TypeError, "EncoderDecoder.config: expected a EncoderDecoderConfig, received 3"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(filled, call, error, message):
    model, variables, _, _ = made("vaswani", filled)
    with pytest.raises(error, match=message):
        call(model, variables, *tokens_of(0))


def test_cross_attention_outside_an_encoder_decoder_says_so(filled):
    from transformer_jax import DecoderOnly
    from transformer_jax.models import DecoderOnlyConfig

    config = DecoderOnlyConfig(V, d_model=D, max_length=9, stack=Stack((Group(1, (Residual(CrossAttention(2)),)),)))
    with pytest.raises(ValueError, match="put the stack in an EncoderDecoder"):
        DecoderOnly(config).init(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))
