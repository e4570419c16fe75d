import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from transformer_jax.ops.activations import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("quick_compile")

ERF = np.vectorize(math.erf)
FORMULAS = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * 0.5 * (1 + ERF(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x * 0.5 * (1 + np.tanh(0.851 * x)),
    "silu": lambda x: x * 0.5 * (1 + np.tanh(x / 2)),
    "squared_relu": lambda x: np.where(x > 0, x * x, 0),
    "tanh": lambda x: np.sign(x) * -np.expm1(-2 * np.abs(x)) / (1 + np.exp(-2 * np.abs(x))),
}
PEERS = {
    "relu": lambda x: jnp.where(x > 0, x, 0),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: jax.nn.silu(1.702 * x) / 1.702,
    "silu": jax.nn.silu,
    "squared_relu": lambda x: jnp.where(x > 0, x * x, 0),
    "tanh": lambda x: 2 * jax.nn.sigmoid(2 * x) - 1,
}
SMOOTH = ["gelu", "gelu_tanh", "quick_gelu", "silu", "tanh"]
# Of the larger of |x| and 1: an activation is about as large as its argument.
ALLOWED = {"float64": 1e-14, "float32": 1e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
POINTS = np.concatenate([np.linspace(-13, 13, 211), [-1e4, -3e3, -89.0, -31.0, 31.0, 89.0, 3e3, 1e4]])


def derivatives(f, x):
    """Values, slopes and second derivatives."""
    one = jax.grad(lambda x: f(x))
    return jax.jit(jax.vmap(lambda x: (f(x), one(x), jax.grad(one)(x))))(x)


def test_every_activation_has_a_formula_here():
    assert set(ACTIVATIONS) == set(FORMULAS) == set(PEERS)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_value_is_the_formula_s_and_has_the_dtype_of_its_argument(name, dtype):
    points = POINTS if dtype != "float16" or name != "squared_relu" else POINTS[np.abs(POINTS) < 200]
    x = jnp.asarray(points, dtype)
    exact = np.asarray(x, np.float64)
    y = jax.jit(ACTIVATIONS[name])(x)
    assert y.dtype == dtype
    size = np.maximum(1, np.abs(FORMULAS[name](exact)))
    np.testing.assert_array_less(np.abs(np.asarray(y, np.float64) - FORMULAS[name](exact)), ALLOWED[dtype] * np.maximum(size, np.minimum(np.abs(exact), 13)))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slope_and_curvature_equal_those_of_jax_nn_far_out_too(name):
    with jax.enable_x64(True):
        x = jnp.asarray(POINTS[POINTS != 0], "float64")
        for ours, theirs in zip(derivatives(ACTIVATIONS[name], x), derivatives(PEERS[name], x)):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_are_finite_and_settle_at_0_and_1_where_numbers_are_large(name, dtype):
    x = jnp.asarray([-3e18, -1e10, -1e4, -300.0, 300.0, 1e4, 1e10, 3e18], dtype)
    slopes = np.asarray(jax.jit(jax.vmap(jax.grad(ACTIVATIONS[name])))(x), np.float64)
    right = 2 * np.asarray(x, np.float64)[4:] if name == "squared_relu" else np.full(4, float(name != "tanh"))
    np.testing.assert_array_equal(slopes, [0, 0, 0, 0, *right])


@pytest.mark.parametrize("name", SMOOTH)
def test_forward_and_reverse_mode_agree_with_differences_to_second_order(name):
    with jax.enable_x64(True):
        x = jnp.asarray([-3.1, -0.7, 0.0, 0.4, 2.3], "float64")
        check_grads(jax.jit(ACTIVATIONS[name]), (x,), order=2, modes=("fwd", "rev"))


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_the_backward_pass_keeps_one_array(name):
    x = jnp.zeros((5, 7))
    _, kept = jax.eval_shape(lambda x: jax.vjp(ACTIVATIONS[name], x), x)
    assert [leaf.shape for leaf in jax.tree.leaves(kept) if leaf.size > 1] == [x.shape]
