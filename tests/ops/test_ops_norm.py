from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from transformer_jax.ops.norm import layer_norm, rms_norm

pytestmark = pytest.mark.usefixtures("quick_compile")

EPS = 1e-3


def formula(x, scale=None, bias=None, *, centred, eps=EPS):
    x = np.asarray(x, np.float64)
    x = x - x.mean(-1, keepdims=True) if centred else x
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    y = y if scale is None else y * np.asarray(scale, np.float64)
    return y if bias is None else y + np.asarray(bias, np.float64)


def value_and_gradients(f, weight):
    """f's value, and the gradients of a weighted sum of it by every argument."""

    def run(*args):
        y, pull = jax.vjp(f, *args)
        return y, pull(weight)

    return jax.jit(run)


def test_layer_norm_and_its_gradients_equal_flax(close, normal):
    x, scale, bias, weight = normal(2, 5, 13), normal(13, seed=1), normal(13, seed=2), normal(2, 5, 13, seed=3)
    module = nn.LayerNorm(epsilon=EPS, use_fast_variance=False)

    def theirs(x, scale, bias):
        return module.apply({"params": {"scale": scale, "bias": bias}}, x)

    def ours(x, scale, bias):
        return layer_norm(x, scale, bias, eps=EPS)

    close(*(value_and_gradients(f, weight)(x, scale, bias) for f in (ours, theirs)))


def test_rms_norm_and_its_gradients_equal_flax(close, normal):
    x, scale, weight = normal(2, 5, 13), normal(13, seed=1), normal(2, 5, 13, seed=3)
    module = nn.RMSNorm(epsilon=EPS)

    def theirs(x, scale):
        return module.apply({"params": {"scale": scale}}, x)

    def ours(x, scale):
        return rms_norm(x, scale, eps=EPS)

    close(*(value_and_gradients(f, weight)(x, scale) for f in (ours, theirs)))


@pytest.mark.parametrize("shape", [(7,), (3, 11), (2, 3, 5, 1), (0, 3)])
def test_norms_equal_the_formula_over_the_last_axis_with_and_without_scale_and_bias(close, normal, shape):
    x, scale, bias = normal(*shape), normal(shape[-1], seed=1), normal(shape[-1], seed=2)
    for s in (None, scale):
        close(jax.jit(lambda x, s=s: rms_norm(x, s, eps=EPS))(x), formula(x, s, centred=False))
        for b in (None, bias):
            close(jax.jit(lambda x, s=s, b=b: layer_norm(x, s, b, eps=EPS))(x), formula(x, s, b, centred=True))


def test_eps_defaults_to_1e_5_for_layer_norm_and_1e_6_for_rms_norm(close, normal):
    x = 1e-3 * normal(3, 7)
    close(layer_norm(x), formula(x, centred=True, eps=1e-5))
    close(rms_norm(x), formula(x, centred=False, eps=1e-6))


@pytest.mark.parametrize("norm", [layer_norm, rms_norm])
def test_gradients_in_float64_equal_differences_in_forward_and_reverse_mode(norm):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, *rest = (jnp.asarray(rng.normal(size=s)) for s in ((3, 7), *(((7,), (7,)) if norm is layer_norm else ((7,),))))
        assert norm(x, *rest).dtype == jnp.float64
        check_grads(jax.jit(norm), (x, *rest), order=2, modes=("fwd", "rev"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("norm", [layer_norm, rms_norm])
def test_statistics_of_half_precision_are_float32_and_the_result_is_not(normal, norm, dtype):
    # Sums of 1031 squares near 10^4 would be wrong by percents in bfloat16 and overflow in float16; a mean of 90 would swallow the variance.
    x = (90 + normal(3, 1031)).astype(dtype)
    scale = normal(1031, seed=1)
    y = jax.jit(partial(norm, eps=EPS))(x, scale)
    assert y.dtype == dtype
    expected = formula(x, scale, centred=norm is layer_norm)
    unit = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=0.51 * unit, atol=1e-5)


def test_layer_norm_of_a_large_mean_keeps_its_digits(normal):
    x = 4096 + normal(5, 17)
    np.testing.assert_allclose(layer_norm(x), formula(x, centred=True, eps=1e-5), atol=1e-3)


@pytest.mark.parametrize("norm", [layer_norm, rms_norm])
def test_a_vector_of_zeros_gives_zeros_and_a_finite_gradient(norm):
    x = jnp.zeros((2, 7))
    y, (gradient,) = value_and_gradients(norm, jnp.ones_like(x))(x)
    np.testing.assert_array_equal(y, 0)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("norm", [layer_norm, rms_norm])
def test_the_backward_pass_keeps_one_array_of_the_size_of_x(norm):
    x = jnp.zeros((5, 7))
    _, kept = jax.eval_shape(lambda x: jax.vjp(norm, x), x)
    assert sum(leaf.size == x.size for leaf in jax.tree.leaves(kept)) == 1
