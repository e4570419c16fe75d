from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.models import stacked, unstacked

pytestmark = pytest.mark.usefixtures("quick_compile")
B, T, V = 2, 13, 29
TOKENS = np.random.default_rng(0).integers(0, V, (B, T)).astype("int32")


def assert_equal_trees(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_unstacked_and_back_changes_no_bit(built, name):
    m = built(name)
    model, variables = unstacked(m.model, m.variables)
    assert model == m.model.clone(stacked=False)
    for n, group in enumerate(m.model.config.stack.groups):
        parts = variables["params"]["stack"][f"groups_{n}"]
        whole = m.variables["params"]["stack"][f"groups_{n}"]["layers"]
        if group.share:
            assert_equal_trees(parts["layers"], whole)
        else:
            assert set(parts) == {f"layers_{layer}" for layer in range(group.repeat)}
            for layer in range(group.repeat):
                assert_equal_trees(parts[f"layers_{layer}"], jax.tree.map(lambda a, at=layer: a[at], whole))
    again, back = stacked(model, variables)
    assert again == m.model
    assert_equal_trees(back, m.variables)


def test_the_unstacked_variables_are_those_that_the_unstacked_model_asks_for(built, name):
    m = built(name)
    model, variables = unstacked(m.model, m.variables)
    wanted = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    assert jax.tree.structure(wanted) == jax.tree.structure(variables)
    assert [(a.shape, a.dtype) for a in jax.tree.leaves(wanted)] == [(a.shape, a.dtype) for a in jax.tree.leaves(variables)]


@pytest.mark.parametrize("which", ["sandwich", "shared"])
def test_the_unstacked_model_gives_the_same_logits_whole_and_step_by_step_with_a_cache_for_each_layer(close, built, which):
    m = built(which)
    model, variables = unstacked(m.model, m.variables)
    whole = m.apply(m.variables, TOKENS)
    close(jax.jit(model.apply)(variables, TOKENS), whole)
    cache, logits = model.init_cache(B, 17), []
    repeats = [group.repeat for group in m.model.config.stack.groups]
    assert [len(group) for group in cache.layers] == repeats
    step = jax.jit(partial(model.apply, method="step"))
    for at in (0, 5):
        y, cache = step(variables, TOKENS[:, at : at + 5], cache)
        logits.append(y)
    close(jnp.concatenate(logits, 1), whole[:, :10], times=3)
    assert [len(group) for group in cache.layers] == repeats


def test_anything_of_the_shape_of_the_variables_is_laid_out_too_and_what_lies_beside_it_is_left_alone(built):
    m = built("sandwich")
    moments = {"params": jax.tree.map(lambda a: a * a, m.variables["params"]), "step": jnp.int32(3)}
    model, variables = unstacked(m.model, moments)
    assert variables["step"] == 3
    assert_equal_trees(stacked(model, variables)[1], moments)


def test_a_model_already_laid_out_so_is_refused(built):
    m = built("gpt")
    with pytest.raises(ValueError, match="model: expected one that is unstacked, received one that is not"):
        stacked(m.model, m.variables)
    model, variables = unstacked(m.model, m.variables)
    with pytest.raises(ValueError, match="model: expected one that is stacked, received one that is not"):
        unstacked(model, variables)
