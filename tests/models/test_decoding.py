import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_jax.precision import Precision

pytestmark = pytest.mark.usefixtures("quick_compile")
B, T, V = 2, 13, 29
CHUNKS = (1, 5)


def tokens_of(seed):
    return np.random.default_rng(seed).integers(0, V, (B, T)).astype("int32")


def in_chunks(m, tokens, sizes, slots, valid=None):
    """Logits of steps of these sizes, and the cache after them."""
    cache, logits, at = m.model.init_cache(B, slots), [], 0
    valid = np.ones((B, T), bool) if valid is None else valid
    for size in sizes:
        y, cache = m.step(m.variables, tokens[:, at : at + size], cache, valid=valid[:, at : at + size])
        logits.append(np.asarray(y))
        at += size
    return np.concatenate(logits, 1), cache


@st.composite
def chunks(draw, total=T):
    sizes = []
    while sum(sizes) < total:
        sizes.append(draw(st.sampled_from([c for c in CHUNKS if c <= total - sum(sizes)])))
    return sizes


def test_steps_of_any_sizes_equal_the_whole(close, built, name):
    m = built(name)

    @settings(max_examples=settings.default.max_examples // 2)
    @given(sizes=chunks(), seed=st.integers(0, 99))
    def check(sizes, seed):
        tokens = tokens_of(seed)
        steps, cache = in_chunks(m, tokens, sizes, slots=17)
        close(steps.astype("float32"), m.apply(m.variables, tokens), times=3)
        assert cache.index == T
        np.testing.assert_array_equal(cache.valid, [[True] * T + [False] * 4] * B)
        np.testing.assert_array_equal(cache.positions[:, :T], [range(T)] * B)

    check()


def test_padded_prompts_in_steps_equal_the_whole_at_the_valid_tokens(close, built, name):
    m = built(name)

    @settings(max_examples=settings.default.max_examples // 2)
    @given(sizes=chunks(), pads=st.lists(st.integers(0, 7), min_size=B, max_size=B), seed=st.integers(0, 99))
    def check(sizes, pads, seed):
        tokens, valid = tokens_of(seed), np.arange(T) >= np.asarray(pads)[:, None]
        steps, _ = in_chunks(m, tokens, sizes, slots=17, valid=valid)
        whole = np.asarray(m.apply(m.variables, tokens, valid=jnp.asarray(valid)))
        close(steps[valid].astype("float32"), whole[valid], times=3)

    check()


def test_padding_between_a_prompt_and_what_follows_it_is_not_seen(close, built, name):
    m, tokens = built(name), tokens_of(0)
    valid = np.ones((B, T), bool)
    valid[0, 3:5] = False  # a prompt of 3 tokens padded on the right to 5
    steps, _ = in_chunks(m, tokens, (5, 5, 1, 1, 1), slots=17, valid=valid)
    kept = np.stack([np.delete(tokens[0], [3, 4]), tokens[1, :11]])
    alone = np.asarray(m.apply(m.variables, np.concatenate([kept, tokens[:, :2]], 1)))[0, :11]
    close(np.delete(steps[0], [3, 4], 0).astype("float32"), alone, times=3)


def test_steps_beyond_the_cache_give_nan_and_those_within_do_not(built):
    m, tokens = built("llama"), tokens_of(0)
    logits, cache = in_chunks(m, tokens, (5, 5, 1, 1, 1), slots=12)
    np.testing.assert_array_equal(np.isnan(logits).all(-1), [[False] * 12 + [True]] * B)
    np.testing.assert_array_equal(np.isnan(logits).any(-1), np.isnan(logits).all(-1))
    more, _ = m.step(m.variables, tokens[:, :1], cache, valid=np.ones((B, 1), bool))
    assert np.isnan(more).all()
    beyond, _ = in_chunks(m, tokens, (5, 5, 5), slots=12)
    assert np.isnan(beyond[:, 10:]).all() and not np.isnan(beyond[:, :10]).any()


def test_all_tokens_are_valid_unless_said_otherwise(built):
    m, tokens = built("gpt"), tokens_of(0)
    cache = m.model.init_cache(B, 5)
    given_all, other = m.step(m.variables, tokens[:, :5], cache, valid=np.ones((B, 5), bool)), m.step(m.variables, tokens[:, :5], cache)
    jax.tree.map(np.testing.assert_array_equal, given_all, other)


def test_an_empty_cache_has_an_array_for_each_group_with_a_leading_layer_axis_in_the_dtype_of_compute(decoders):
    cache = decoders["gemma"].make(precision=Precision(compute="bfloat16")).init_cache(3, 7)
    assert (cache.positions.shape, cache.valid.shape, cache.index.shape) == ((3, 7), (3, 7), ())
    assert not cache.valid.any()
    ((local, mlp, wide),) = cache.layers
    assert mlp == ()
    for layer in (local, wide):
        assert {name: (a.shape, a.dtype.name) for name, a in layer.items()} == dict.fromkeys(("key", "value"), ((2, 3, 1, 7, 6), "bfloat16"))


def test_a_step_is_a_pure_function_of_its_cache(built):
    m, tokens = built("llama"), tokens_of(0)
    _, cache = in_chunks(m, tokens, (5,), slots=17)
    one, again = (m.step(m.variables, tokens[:, 5:6], cache, valid=np.ones((B, 1), bool)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one, again)
