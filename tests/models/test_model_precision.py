from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.precision import Precision

pytestmark = pytest.mark.usefixtures("quick_compile")
B, T, V = 2, 13, 29
TOKENS = np.random.default_rng(0).integers(0, V, (B, T)).astype("int32")
# Of norms and softmax, and of the angles of positions. (silu is `logistic`, gelu `erf` or `tanh`.)
EXACT = {"exp", "exp2", "log", "rsqrt", "sqrt", "reduce_sum", "reduce_max", "sin", "cos", "div", "argmax", "cumsum", "pow"}


def equations(jaxpr):
    """Every equation, those of inner jaxprs too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for item in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(item, "jaxpr", item)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def float_dtypes(eqn):
    return {str(v.aval.dtype) for v in eqn.invars if jnp.issubdtype(v.aval.dtype, jnp.floating)}


def test_bfloat16_is_for_products_and_float32_for_statistics_softmax_angles_and_logits(decoders, name):
    model = decoders[name].make(precision=Precision("float32", compute="bfloat16"), backend="auto" if name in ("llama", "shared") else "reference")
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes)} == {"float32"}
    closed = jax.make_jaxpr(model.apply)(shapes, TOKENS)
    assert [v.aval.dtype.name for v in closed.jaxpr.outvars] == ["float32"]
    seen = Counter()
    for eqn in equations(closed.jaxpr):
        kind = eqn.primitive.name
        if kind in EXACT and float_dtypes(eqn):
            seen[kind] += 1
            assert float_dtypes(eqn) == {"float32"}, eqn
        if kind == "dot_general":
            seen[kind] += 1
            assert float_dtypes(eqn) == {"bfloat16"}, eqn
    assert seen["rsqrt"] and seen["exp"] and seen["reduce_sum"] and seen["reduce_max"] and seen["dot_general"] > 4


def test_the_walk_finds_what_is_hidden_in_scans_and_custom_rules():
    def hidden(x):
        return jax.lax.scan(lambda c, _: (jax.nn.relu(jnp.exp(c)), None), x, None, length=3)[0]

    assert Counter(eqn.primitive.name for eqn in equations(jax.make_jaxpr(hidden)(jnp.ones(3)).jaxpr))["exp"] == 1


@pytest.mark.parametrize("which", ["gpt", "gemma"])
def test_bfloat16_logits_are_near_those_of_float32(built, which):
    m = built(which)
    whole = np.asarray(m.apply(m.variables, TOKENS))
    half = jax.jit(m.model.clone(precision=Precision(compute="bfloat16")).apply)(m.variables, TOKENS)
    assert half.dtype == jnp.float32
    error = np.abs(half - whole)
    assert error.max() > 1e-5 * np.abs(whole).max()
    assert np.median(error) < 0.05 * np.abs(whole).max()


@pytest.mark.parametrize("params", ["float32", "float64"])
def test_float64_compute_gives_float64_logits_equal_to_those_of_float32(close, built, params):
    m = built("llama")
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda a: a.astype(params), m.variables)
        exact = jax.jit(m.model.clone(precision=Precision(params, compute="float64")).apply)(variables, TOKENS)
        assert exact.dtype == jnp.float64
    close(m.apply(m.variables, TOKENS), exact)


def test_parameters_of_half_precision_are_kept_so(decoders, name):
    model = decoders[name].make(precision=Precision("bfloat16", compute="bfloat16"))
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes)} == {"bfloat16"}


def test_gradients_have_the_dtype_of_the_parameters(built):
    m = built("gpt")
    model = m.model.clone(precision=Precision(compute="bfloat16"))
    gradient = jax.eval_shape(jax.grad(lambda v: model.apply(v, TOKENS).sum()), m.variables)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), gradient) == jax.tree.map(lambda a: (a.shape, a.dtype), m.variables)
