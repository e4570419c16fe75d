from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.layers import Dense, Group, LayerNorm, NoNorm, Residual, Stack
from transformer_jax.models import DecoderOnly, DecoderOnlyConfig, residual_stream, unstacked

pytestmark = pytest.mark.usefixtures("quick_compile")
B, T, V = 2, 13, 29
TOKENS = np.random.default_rng(0).integers(0, V, (B, T)).astype("int32")


def tapped(model, variables, tokens=TOKENS):
    logits, state = jax.jit(partial(model.apply, mutable=["intermediates"]))(variables, tokens)
    assert set(state) == {"intermediates"}
    return logits, state["intermediates"]["stack"]


def cut(config, variables, group, repetitions):
    """The model that ends after so many repetitions of a group, without its final norm, and the variables it takes."""
    groups = (*config.stack.groups[:group], config.stack.groups[group].replace(repeat=repetitions))
    stack = dict(variables["params"]["stack"])
    if not config.stack.groups[group].share:
        stack[f"groups_{group}"] = jax.tree.map(lambda a: a[:repetitions], stack[f"groups_{group}"])
    return config.replace(stack=config.stack.replace(groups=groups, final_norm=NoNorm())).make(), {"params": {**variables["params"], "stack": stack}}


@pytest.mark.parametrize(("which", "group"), [("llama", 0), ("shared", 1)])
def test_the_residual_stream_of_each_layer_is_that_of_a_model_cut_after_it(close, built, which, group):
    m = built(which)
    _, taps = tapped(m.model, m.variables)
    (stream,) = taps[f"groups_{group}"]["layers"]["residual"]
    repeat = m.model.config.stack.groups[group].repeat
    assert stream.shape == (repeat, B, T, m.model.config.d_model)
    for layer in (0, repeat - 1):
        model, variables = cut(m.model.config, m.variables, group, layer + 1)
        close(stream[layer], jax.jit(partial(model.apply, method="features"))(variables, TOKENS), times=3)


@pytest.mark.parametrize("which", ["sandwich", "shared"])
def test_every_group_has_its_stream_and_tapping_changes_no_bit_of_the_logits(built, which):
    m = built(which)
    logits, taps = tapped(m.model, m.variables)
    np.testing.assert_array_equal(logits, m.apply(m.variables, TOKENS))
    for n, group in enumerate(m.model.config.stack.groups):
        assert taps[f"groups_{n}"]["layers"]["residual"][0].shape[:2] == (group.repeat, B)
    assert "probabilities" not in str(jax.tree.structure(taps))


def test_attention_probabilities_are_there_on_the_reference_backend_one_layer_after_the_other(close, built):
    m = built("llama")
    logits, taps = tapped(m.model.clone(backend="reference"), m.variables)
    (p,) = taps["groups_0"]["layers"]["sublayers_0"]["layer"]["probabilities"]
    assert p.shape == (3, B, 6, T, T)
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-5)
    assert (np.asarray(p)[..., ~np.tri(T, dtype=bool)] == 0).all()
    assert p.min() >= 0
    assert not np.allclose(p[0], p[1], atol=1e-2)
    close(logits, m.apply(m.variables, TOKENS))


def test_nothing_is_sown_where_nobody_asks(built):
    m = built("llama")
    logits = jax.eval_shape(m.model.clone(backend="reference").apply, m.variables, TOKENS)
    assert logits.shape == (B, T, V)


def test_taps_of_the_unstacked_model_have_a_name_for_each_layer_and_the_same_values(close, built):
    m = built("llama")
    (stream,) = tapped(m.model, m.variables)[1]["groups_0"]["layers"]["residual"]
    taps = tapped(*unstacked(m.model, m.variables))[1]["groups_0"]
    for layer in range(3):
        close(taps[f"layers_{layer}"]["residual"][0], stream[layer])


def test_taps_work_under_grad(built):
    m = built("llama")

    def loss(variables):
        logits, state = m.model.apply(variables, TOKENS, mutable=["intermediates"])
        return state["intermediates"]["stack"]["groups_0"]["layers"]["residual"][0][1].sum(), logits

    gradient, _ = jax.jit(jax.grad(loss, has_aux=True))(m.variables)
    kernels = gradient["params"]["stack"]["groups_0"]["layers"]["sublayers_1"]["layer"]["down"]["kernel"]
    assert np.abs(kernels[:2]).min(axis=(1, 2)).shape == (2,) and np.abs(kernels[:2]).max() > 1e-3
    np.testing.assert_array_equal(kernels[2], 0)  # layers beyond the one read have no part in it


@pytest.mark.parametrize("share", [False, True])
def test_the_residual_stream_is_the_same_in_either_layout_and_its_last_layer_is_what_the_head_reads(share: bool, close: Any) -> None:
    mlp = Residual(Dense(24), pre=LayerNorm())
    stack = Stack((Group(2, (mlp,)), Group(3, (mlp, mlp), share=share)))
    model = DecoderOnly(DecoderOnlyConfig(31, d_model=12, max_length=8, stack=stack))
    tokens = jnp.arange(14).reshape(2, 7)
    variables = model.init(jax.random.key(0), tokens)
    stream = residual_stream(model, variables, tokens)
    assert stream.shape == (5, 2, 7, 12)
    close(stream[-1], model.apply(variables, tokens, method="features"))
    close(residual_stream(*unstacked(model, variables), tokens), stream)
