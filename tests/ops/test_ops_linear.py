import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.ops.linear import project

pytestmark = pytest.mark.usefixtures("quick_compile")

CASES = {
    "...d,df->...f": ((7,), (5,)),
    "...d,dnh->...nh": ((7,), (3, 5)),
    "...nh,nhd->...d": ((3, 5), (7,)),
    "...nh,nhkd->...kd": ((3, 5), (2, 7)),
}


@pytest.mark.parametrize("lead", [(), (11,), (2, 11), (2, 3, 11), (0, 3)])
@pytest.mark.parametrize("subscripts", CASES)
def test_project_is_the_einsum_over_the_kernel_s_first_axes_plus_bias(close, normal, subscripts, lead):
    inputs, outputs = CASES[subscripts]
    x, kernel, bias = normal(*lead, *inputs), normal(*inputs, *outputs, seed=1), normal(*outputs, seed=2)
    expected = np.einsum(subscripts, *(np.asarray(a, np.float64) for a in (x, kernel)))
    without, with_bias = jax.jit(lambda *args: (project(*args[:2], axes=len(inputs)), project(*args, axes=len(inputs))))(x, kernel, bias)
    close(without, expected)
    close(with_bias, expected + np.asarray(bias, np.float64))


def test_gradients_equal_those_of_the_einsum(close, normal):
    x, kernel, bias, weight = normal(2, 11, 3, 5), normal(3, 5, 7, seed=1), normal(7, seed=2), normal(2, 11, 7, seed=3)
    ours = jax.jit(jax.grad(lambda *args: (project(*args, axes=2) * weight).sum(), (0, 1, 2)))(x, kernel, bias)
    theirs = jax.jit(jax.grad(lambda x, k, b: ((jnp.einsum("btnh,nhd->btd", x, k, precision="highest") + b) * weight).sum(), (0, 1, 2)))(x, kernel, bias)
    close(ours, theirs)


def test_the_result_has_the_dtype_of_x_whatever_the_kernel_s(close, normal):
    x, kernel, bias = normal(2, 7, dtype="bfloat16"), normal(7, 5, seed=1), normal(5, seed=2)
    y = project(x, kernel, bias)
    assert y.dtype == jnp.bfloat16
    close(y, np.asarray(x, np.float64) @ np.asarray(kernel, np.float64) + np.asarray(bias, np.float64))
