import functools
import itertools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import masks
from transformer_jax.layers import Attention, Causal, Dense, Gated, Group, LayerNorm, Learned, NoMask, Residual, RMSNorm, Stack
from transformer_jax.layers.embedding import Embedding
from transformer_jax.models import DecoderOnly, DecoderOnlyConfig
from transformer_jax.precision import Precision

pytestmark = pytest.mark.usefixtures("quick_compile")
B, T, V = 2, 13, 29


def tokens_of(seed, shape=(B, T)):
    return jnp.asarray(np.random.default_rng(seed).integers(0, V, shape), jnp.int32)


def test_init_gives_parameters_and_no_other_collection_and_apply_gives_float32_logits(decoders, name):
    model = decoders[name].make(backend="reference")
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens_of(0))
    assert set(shapes) == {"params"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes)} == {"float32"}
    logits = jax.eval_shape(model.apply, shapes, tokens_of(0))
    assert (logits.shape, logits.dtype.name) == ((B, T, V), "float32")


def alone(m, tokens, junk):
    """The logits of sequences that start at position 0 and fill less than T places: what follows them is junk, which they do not see."""
    n = tokens.shape[1]
    return m.apply(m.variables, jnp.concatenate([tokens, junk[:, n:]], 1))[:, :n]


def test_packed_segments_with_their_own_positions_equal_separate_sequences(close, built, name):
    m = built(name)

    @settings(max_examples=settings.default.max_examples // 2)
    @given(cuts=st.lists(st.integers(0, T), min_size=1, max_size=3).map(lambda cuts: sorted({0, T, *cuts})), seed=st.integers(0, 99))
    def check(cuts, seed):
        tokens, junk = tokens_of(seed), tokens_of(seed + 100)
        lengths = np.diff(cuts)
        ids = jnp.asarray(np.repeat(np.arange(len(lengths)) * 7 - 5, lengths), jnp.int32)
        positions = jnp.asarray(np.concatenate([np.arange(n) for n in lengths]), jnp.int32)
        packed = m.apply(m.variables, tokens, positions=jnp.tile(positions, (B, 1)), segment_ids=jnp.tile(ids, (B, 1)))
        separate = [alone(m, tokens[:, a:b], junk) for a, b in itertools.pairwise(cuts)]
        close(packed, jnp.concatenate(separate, 1), times=3)

    check()


def test_padding_on_either_side_changes_nothing_at_the_valid_tokens(close, built, name):
    m = built(name)

    @settings(max_examples=settings.default.max_examples // 2)
    @given(sides=st.lists(st.integers(0, 5), min_size=4, max_size=4), seed=st.integers(0, 99))
    def check(sides, seed):
        tokens, junk = tokens_of(seed), tokens_of(seed + 100)
        valid = np.stack([(np.arange(T) >= sides[2 * b]) & (np.arange(T) < T - sides[2 * b + 1]) for b in range(B)])
        padded = m.apply(m.variables, tokens, valid=jnp.asarray(valid))
        for b in range(B):
            start, stop = sides[2 * b], T - sides[2 * b + 1]
            expected = alone(m, jnp.tile(tokens[b : b + 1, start:stop], (B, 1)), junk)[0]
            close(padded[b, start:stop], expected, times=3)

    check()


def test_a_call_s_mask_rules_out_what_layers_allow(built):
    m, tokens = built("llama"), tokens_of(0)
    alone_at_5 = masks.from_function(lambda i: (i.q != 5) | (i.k == 5))
    logits = jax.jit(lambda v, t: m.model.apply(v, t, mask=alone_at_5))(m.variables, tokens)
    whole = m.apply(m.variables, tokens)
    np.testing.assert_array_equal(logits[:, :5], whole[:, :5])
    assert (np.abs(logits[:, 5] - whole[:, 5]) > 1e-3).any()


def test_positions_are_0_1_2_unless_given(close, built):
    m, tokens = built("gpt"), tokens_of(0)
    close(m.apply(m.variables, tokens), m.apply(m.variables, tokens, positions=jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))))


def test_features_and_unembedding_are_the_two_halves_of_a_call(close, built):
    m, tokens = built("gemma"), tokens_of(0)
    x, unembedding = jax.jit(partial(m.model.apply, method="prelogits"))(m.variables, tokens)
    assert x.shape == (B, T, m.model.config.d_model)
    close(x, jax.jit(partial(m.model.apply, method="features"))(m.variables, tokens))
    close(unembedding(x), m.apply(m.variables, tokens))


def llama(**changes):
    attention = Residual(Attention(6, mask=Causal(), num_kv_heads=2, head_dim=4, qkv_bias=True), pre=RMSNorm())
    stack = Stack((Group(3, (attention, Residual(Gated(23), pre=LayerNorm()))), Group(5, (Residual(Dense(7, bias=True)),), share=True)), final_norm=RMSNorm())
    return DecoderOnlyConfig(V, d_model=19, max_length=23, stack=stack, embedding=Embedding(Learned()), **changes)


def test_the_number_of_parameters_is_that_counted_by_hand():
    attention = 19 + (19 + 1) * 24 + 2 * (19 + 1) * 8 + 24 * 19
    gated = 2 * 19 + 3 * 19 * 23
    dense_once = (19 + 1) * 7 + (7 + 1) * 19
    expected = 29 * 19 + 23 * 19 + 3 * (attention + gated) + dense_once + 19
    shapes = jax.eval_shape(llama().make().init, jax.random.key(0), tokens_of(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected


def test_a_sequence_beyond_max_length_is_refused_and_one_of_it_is_not():
    model = llama().make()
    jax.eval_shape(model.init, jax.random.key(0), tokens_of(0, (1, 23)))
    with pytest.raises(ValueError, match="tokens: expected at most max_length = 23 to a sequence, received 24; cut it, or build with a larger one"):
        model.init(jax.random.key(0), tokens_of(0, (1, 24)))


def test_a_vocabulary_that_is_not_known_yet_is_named_with_the_way_out():
    with pytest.raises(ValueError, match=r"DecoderOnlyConfig.vocab_size: expected a number, received None; fill it in: config.replace\(vocab_size="):
        llama().replace(vocab_size=None).make().init(jax.random.key(0), tokens_of(0))


@pytest.mark.parametrize(
    ("tokens", "received"),
    [
        (np.zeros((2, 3), np.float32), r"float32 \(2, 3\)"),
        (np.zeros((2, 3), bool), r"bool \(2, 3\)"),
        (np.zeros(3, np.int32), r"int32 \(3,\)"),
        (np.int32(3), r"int32 \(\)"),
    ],
)
def test_tokens_that_are_no_matrix_of_integers_are_refused(tokens, received):
    with pytest.raises(ValueError, match=rf"tokens: expected integers of shape \[B, T\], received {received}"):
        llama().make().init(jax.random.key(0), tokens)


def test_an_unknown_backend_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"backend: expected one of auto.* \(nearest: reference\)"):
        jax.eval_shape(llama().make(backend="referenc").init, jax.random.key(0), tokens_of(0))


def test_make_of_a_config_is_the_model_with_those_fields():
    assert llama().make(precision=Precision("bfloat16"), unroll=3) == DecoderOnly(llama(), Precision("bfloat16"), unroll=3)


def test_a_token_outside_the_vocabulary_gives_nan_from_it_on_and_not_in_other_sequences(built):
    m, tokens = built("llama"), tokens_of(0)
    nan = np.isnan(m.apply(m.variables, tokens.at[0, 5].set(-1)))
    assert nan[0, 5:].all()
    assert not nan[1].any()


def test_a_model_that_sees_everything_is_not_causal(filled):
    config = DecoderOnlyConfig(V, d_model=19, max_length=13, stack=Stack((Group(1, (Residual(Attention(1, mask=NoMask())),)),)))
    model, tokens = config.make(), tokens_of(0)
    apply, variables = jax.jit(model.apply), filled(model, tokens)
    assert (np.abs(apply(variables, tokens) - apply(variables, tokens.at[:, 12].add(1) % V))[:, 0] > 1e-6).any()


def test_a_second_call_with_an_equal_model_and_arrays_of_the_same_shapes_traces_and_compiles_nothing(filled):
    variables = filled(llama().make(), tokens_of(0))

    @partial(jax.jit, static_argnums=0)
    @chex.assert_max_traces(n=1)
    def apply(model, variables, tokens):
        return model.apply(variables, tokens, valid=tokens > 0)

    chex.clear_trace_counter()
    first = apply(llama().make(), variables, tokens_of(0))
    again = apply(llama().make(), jax.tree.map(np.asarray, variables), tokens_of(1))
    assert not np.array_equal(first, again)
    with pytest.raises(AssertionError, match="traced > 1 times"):
        apply(llama().make(unroll=3), variables, tokens_of(0))


class WithAndWithoutJit(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_logits_equal_those_of_float64_with_and_without_jit(self):
        variables, exact = in_float64()
        logits = self.variant(llama().make().apply)(variables, tokens_of(0))
        np.testing.assert_allclose(logits, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


@functools.cache
def in_float64():
    """Random variables, and their logits from a model that computes in float64."""
    shapes = jax.eval_shape(llama().make().init, jax.random.key(0), tokens_of(0))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), leaf.dtype), shapes)
    with jax.enable_x64(True):
        model = llama().make(precision=Precision("float64", compute="float64"))
        exact = jax.jit(model.apply)(jax.tree.map(lambda a: a.astype("float64"), variables), tokens_of(0))
    assert exact.dtype == "float64"
    return variables, np.asarray(exact)
