import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.config import from_json, to_json
from transformer_jax.layers import (
    Build,
    FirstToken,
    Head,
    LanguageModel,
    LastToken,
    LayerNorm,
    MaskedLanguageModel,
    Mean,
    NoNorm,
    RMSNorm,
    SentenceEmbedding,
    SequenceClassifier,
    TokenClassifier,
)
from transformer_jax.precision import Precision

pytestmark = pytest.mark.usefixtures("quick_compile")
B, T, D, C, V = 3, 5, 11, 7, 29
VALID = np.array([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 1]], bool)


def run(config, normal, filled, valid=VALID, **build):
    """The logits (or what there is in their place), the parameters and the hidden state, in float64."""
    module, x, table = config.make(Build(D, **build), V), normal(B, T, D), normal(V, D, seed=1)
    variables = filled(module, x, table, valid)

    def out(variables, x):
        x, unembedding = module.apply(variables, x, table, valid)
        return x if unembedding is None else unembedding(x)

    wide = [jax.tree.map(lambda a: np.asarray(a, np.float64), a) for a in (variables.get("params", {}), x, table)]
    return jax.jit(out)(variables, x), *wide


def normed(p, x):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * p["scale"]


@pytest.mark.parametrize("logits_bias", [True, False])
@pytest.mark.parametrize(("bias", "norm"), [(True, NoNorm()), (False, RMSNorm())], ids=["roberta", "modernbert"])
@pytest.mark.parametrize("kind", [SequenceClassifier, TokenClassifier])
def test_logits_are_made_from_a_dense_layer_its_activation_and_its_norm(close, normal, filled, kind, bias, norm, logits_bias):
    config = kind(C, activation="silu", bias=bias, norm=norm, logits_bias=logits_bias)
    y, p, x, _ = run(config, normal, filled)
    names = {"kernel", "dense", *(["bias"] if logits_bias else []), *(["norm"] if norm != NoNorm() else [])}
    assert set(p) == names and set(p["dense"]) == {"kernel", *(["bias"] if bias else [])}
    x = x[np.arange(B), VALID.argmax(-1)] if kind is SequenceClassifier else x
    h = x @ p["dense"]["kernel"] + p["dense"].get("bias", 0)
    h = h / (1 + np.exp(-h))
    close(y, (normed(p["norm"], h) if "norm" in p else h) @ p["kernel"] + p.get("bias", 0))


def test_a_decoder_s_classifier_is_the_last_token_s_product_alone(close, normal, filled):
    y, p, x, _ = run(SequenceClassifier(C, pool=LastToken(), activation=None, logits_bias=False), normal, filled)
    assert set(p) == {"kernel"}
    close(y, x[[0, 1, 2], [3, 4, 4]] @ p["kernel"])


@pytest.mark.parametrize("pool", [Mean(), FirstToken()])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_sentence_embedding_is_the_pooled_vector_of_length_1_if_asked(close, normal, filled, pool, normalize):
    y, p, x, _ = run(SentenceEmbedding(pool, normalize=normalize), normal, filled)
    assert p == {} and y.shape == (B, D)
    expected = (x * VALID[..., None]).sum(1) / VALID.sum(1)[:, None] if pool == Mean() else x[np.arange(B), VALID.argmax(-1)]
    close(y, expected / np.linalg.norm(expected, axis=-1, keepdims=True) if normalize else expected)


def test_a_normalised_embedding_of_zeros_is_zeros_and_has_finite_gradients(normal):
    module = SentenceEmbedding(normalize=True).make(Build(D), V)
    x = normal(B, T, D).at[1].set(0)

    def total(x):
        y, _ = module.apply({}, x, jnp.zeros((V, D)), None)
        return (y * jnp.arange(D)).sum(), y

    gradient, y = jax.jit(jax.grad(total, has_aux=True))(x)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(y[1], np.zeros(D))
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), [1, 0, 1], rtol=1e-6)


def test_a_normalised_embedding_in_bfloat16_is_normalised_before_it_is_rounded(normal):
    module, x = SentenceEmbedding(normalize=True).make(Build(D, precision=Precision(compute="bfloat16")), V), normal(B, T, D, dtype="bfloat16")
    y, _ = module.apply({}, x, jnp.zeros((V, D)), None)
    pooled = np.asarray(Mean()(x, jnp.ones((B, T), bool)), np.float32)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float32), pooled / np.linalg.norm(pooled, axis=-1, keepdims=True), rtol=2**-8)


@pytest.mark.parametrize("bias", [True, False])
def test_a_masked_language_model_s_dense_layer_may_have_no_bias(close, normal, filled, bias):
    y, p, x, table = run(MaskedLanguageModel("silu", bias=bias, norm=RMSNorm(), logits=LanguageModel(scale=0.5)), normal, filled)
    assert ("bias" in p["transform"]) == bias
    h = x @ p["transform"]["kernel"] + p["transform"].get("bias", 0)
    close(y, 0.5 * normed(p["norm"], h / (1 + np.exp(-h))) @ table.T)


def test_configs_survive_json_and_refuse_what_would_be_ignored():
    for config in (SequenceClassifier(C, norm=LayerNorm(), bias=False), TokenClassifier(C, activation="gelu"), SentenceEmbedding(normalize=True)):
        assert from_json(to_json(config), Head) == config
    with pytest.raises(ValueError, match=r"TokenClassifier.norm: expected NoNorm\(\) without an activation, .* received RMSNorm"):
        TokenClassifier(C, norm=RMSNorm())
    with pytest.raises(ValueError, match=r"SequenceClassifier.bias: expected True without an activation, .* received False"):
        SequenceClassifier(C, activation=None, bias=False)
