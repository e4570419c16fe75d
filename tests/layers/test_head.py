import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.loss import linear_cross_entropy
from transformer_jax.layers import Build, LanguageModel, Unembedding
from transformer_jax.precision import Precision

pytestmark = pytest.mark.usefixtures("quick_compile")
V, D = 29, 13


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize(("bias", "scale"), [(False, 1.0), (True, 1.0), (True, 0.3)])
@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_the_scaled_product_with_the_tied_or_own_kernel_plus_bias_capped(close, normal, filled, tied, bias, scale, softcap):
    module = LanguageModel(tied=tied, bias=bias, scale=scale, softcap=softcap).make(Build(D), V)
    table, x = normal(V, D), normal(2, 5, D, seed=1)
    variables = filled(module, x, table, None)
    params = variables.get("params", {})
    assert set(params) == {name for name, there in (("kernel", not tied), ("bias", bias)) if there}
    kernel = np.asarray(table, np.float64).T if tied else np.asarray(params["kernel"], np.float64)
    expected = scale * np.asarray(x, np.float64) @ kernel + np.asarray(params.get("bias", 0), np.float64)
    expected = expected if softcap is None else softcap * np.tanh(expected / softcap)

    def logits(variables, table, x):
        features, unembedding = module.apply(variables, x, table, None)
        return unembedding(features)

    close(jax.jit(logits)(variables, table, x), expected)


@pytest.mark.parametrize("lead", [(), (5,), (2, 3, 5)])
def test_an_unembedding_takes_any_leading_axes_and_crosses_jit_as_a_pytree(close, normal, lead):
    head = Unembedding(normal(D, V), normal(V, seed=1), 2.0)
    x = normal(*lead, D, seed=2)
    logits = jax.jit(lambda head, x: head(x))(head, x)
    close(logits, 2 * np.tanh((np.asarray(x, np.float64) @ np.asarray(head.kernel, np.float64) + np.asarray(head.bias, np.float64)) / 2))


def test_logits_of_bfloat16_features_are_float32_and_not_rounded_to_bfloat16(normal):
    x, kernel = normal(3, D, dtype="bfloat16"), normal(D, V, seed=1)
    logits = jax.jit(lambda kernel, x: Unembedding(kernel)(x))(kernel, x)
    assert logits.dtype == jnp.float32
    expected = np.asarray(x, np.float64) @ np.asarray(kernel.astype("bfloat16"), np.float64)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_head_s_own_parameters_are_in_the_dtype_of_parameters(normal):
    module = LanguageModel(tied=False, bias=True).make(Build(D, precision=Precision("bfloat16")), V)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), normal(2, 3, D), normal(V, D), None))["params"]
    assert {name: (leaf.shape, leaf.dtype.name) for name, leaf in shapes.items()} == {"kernel": ((D, V), "bfloat16"), "bias": ((V,), "bfloat16")}


def test_a_fused_loss_that_starts_from_a_scaled_head_s_two_halves_is_that_of_its_logits(close, normal, filled):
    module = LanguageModel(scale=0.3, bias=True, softcap=2.0).make(Build(D), V)
    table, x, labels = normal(V, D), 5 * normal(7, D, seed=1), jnp.arange(7)
    variables = filled(module, x[None], table, None)
    features, head = module.apply(variables, x, table, None)
    fused = linear_cross_entropy(features, head.kernel, labels, bias=head.bias, softcap=head.softcap)
    logits = 0.3 * np.asarray(x, np.float64) @ np.asarray(table, np.float64).T + np.asarray(variables["params"]["bias"], np.float64)
    logits = 2 * np.tanh(logits / 2)
    close(fused.total, (np.log(np.exp(logits).sum(-1)) - logits[np.arange(7), labels]).sum())


def test_a_scale_of_0_is_refused():
    with pytest.raises(ValueError, match=r"LanguageModel.scale: expected more than 0, received 0"):
        LanguageModel(scale=0.0)
