import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.layers import Build, LayerNorm, NoNorm, RMSNorm
from transformer_jax.precision import Precision

pytestmark = pytest.mark.usefixtures("quick_compile")
BUILD = Build(19)


def standardised(x, eps, centred):
    x = np.asarray(x, np.float64)
    x = x - x.mean(-1, keepdims=True) if centred else x
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)


@pytest.mark.parametrize("features", [19, 5])
def test_each_norm_is_its_formula_over_the_last_axis_whatever_its_size(close, normal, filled, features):
    x = normal(2, 3, features)
    for scale in (True, False):
        for bias in (True, False):
            module = LayerNorm(1e-2, scale=scale, bias=bias).make(BUILD)
            variables = filled(module, x)
            params = variables.get("params", {})
            assert set(params) == {name for name, there in (("scale", scale), ("bias", bias)) if there}
            expected = standardised(x, 1e-2, True) * params.get("scale", 1) + params.get("bias", 0)
            close(jax.jit(module.apply)(variables, x), expected)
    module = RMSNorm(1e-2).make(BUILD)
    variables = filled(module, x)
    close(jax.jit(module.apply)(variables, x), standardised(x, 1e-2, False) * variables["params"]["scale"])
    np.testing.assert_array_equal(NoNorm().make(BUILD).apply({}, x), x)


def test_an_offset_is_added_to_the_scale_and_taken_off_its_initial_value(close, normal, filled):
    x = normal(2, 3, 7)
    module = RMSNorm(offset=1.0).make(BUILD)
    variables = filled(module, x)
    close(jax.jit(module.apply)(variables, x), standardised(x, 1e-6, False) * (1 + np.asarray(variables["params"]["scale"])))
    first = module.init(jax.random.key(0), x)
    np.testing.assert_array_equal(first["params"]["scale"], 0)
    np.testing.assert_array_equal(module.apply(first, x), RMSNorm().make(BUILD).apply({"params": {"scale": jnp.ones(7)}}, x))


@pytest.mark.parametrize("config", [LayerNorm(), RMSNorm(), RMSNorm(offset=1.0)])
def test_parameters_are_in_the_dtype_of_parameters_and_the_result_in_that_of_the_input(normal, config):
    module = config.make(Build(19, precision=Precision("float16", compute="bfloat16")))
    x = normal(2, 19, dtype="bfloat16")
    variables = module.init(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float16")}
    assert module.apply(variables, x).dtype == jnp.bfloat16
