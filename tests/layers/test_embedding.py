import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.layers import Build, Embedding, Learned, RMSNorm, Sinusoidal
from transformer_jax.precision import Precision

pytestmark = pytest.mark.usefixtures("quick_compile")
V, D, L = 29, 14, 17
BUILD = Build(D, max_length=L)
TOKENS = jnp.asarray([[0, 28, 3, 3, 17], [5, 1, 28, 0, 2]])
POSITIONS = jnp.asarray([[0, 1, 2, 3, 4], [16, 3, 3, 0, 9]])


def run(config, filled, tokens=TOKENS, positions=POSITIONS, build=BUILD):
    module = config.make(build, V)
    variables = filled(module, tokens, positions)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    return jax.jit(module.apply)(variables, tokens, positions), p


def test_embeddings_are_rows_of_the_table_and_scale_multiplies_them_by_the_root_of_d_model(close, filled):
    y, p = run(Embedding(), filled)
    close(y, p["embedding"][TOKENS])
    assert p["embedding"].shape == (V, D)
    y, p = run(Embedding(scale=True), filled)
    close(y, p["embedding"][TOKENS] * D**0.5)


def test_learned_positions_are_added_after_the_scale(close, filled):
    y, p = run(Embedding(Learned(), scale=True), filled)
    close(y, p["embedding"][TOKENS] * D**0.5 + p["position"]["embedding"][POSITIONS])
    assert p["position"]["embedding"].shape == (L, D)


def test_a_learned_table_may_have_rows_before_that_of_position_0(close, filled):
    y, p = run(Embedding(Learned(offset=2)), filled)
    assert p["position"]["embedding"].shape == (L + 2, D)
    close(y, p["embedding"][TOKENS] + p["position"]["embedding"][np.asarray(POSITIONS) + 2])
    y, _ = run(Embedding(Learned(offset=2)), filled, positions=jnp.asarray([[0, L - 1, L, -1, -2], [0, 1, 2, 3, 100]]))
    np.testing.assert_array_equal(np.isnan(y).all(-1), [[0, 0, 1, 1, 1], [0, 0, 0, 0, 1]])
    with pytest.raises(ValueError, match=r"Learned.offset: expected at least 0, received -1"):
        Learned(offset=-1)


@pytest.mark.parametrize("interleaved", [True, False])
def test_sinusoidal_positions_are_added_interleaved_or_sines_first(close, filled, interleaved):
    y, p = run(Embedding(Sinusoidal(37.0, interleaved=interleaved)), filled)
    angle = np.asarray(POSITIONS)[..., None] / 37.0 ** (np.arange(0, D, 2) / D)
    sines, cosines = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(D // 2), slice(D // 2, None))
    waves = np.zeros((*POSITIONS.shape, D))
    waves[..., sines], waves[..., cosines] = np.sin(angle), np.cos(angle)
    close(y, p["embedding"][TOKENS] + waves)


def test_the_norm_is_of_the_sum_of_tokens_positions_and_types(close, filled):
    config, types = Embedding(Learned(), norm=RMSNorm(), token_types=3, scale=True), jnp.asarray([[0, 2, 1, 1, 0], [2, 2, 0, 1, 2]])
    module = config.make(BUILD, V)
    variables = filled(module, TOKENS, POSITIONS, types)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    x = p["embedding"][TOKENS] * D**0.5 + p["position"]["embedding"][POSITIONS] + p["token_types"][types]
    close(jax.jit(module.apply)(variables, TOKENS, POSITIONS, types), x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * p["norm"]["scale"])


def test_the_norm_is_of_the_sum(close, filled):
    y, p = run(Embedding(Learned(), norm=RMSNorm()), filled)
    x = p["embedding"][TOKENS] + p["position"]["embedding"][POSITIONS]
    close(y, x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * p["norm"]["scale"])


@pytest.mark.parametrize("position", [Learned(), Sinusoidal()])
def test_positions_count_from_0_unless_given(filled, position):
    counted = jnp.broadcast_to(jnp.arange(5), (2, 5))
    np.testing.assert_array_equal(run(Embedding(position), filled, positions=None)[0], run(Embedding(position), filled, positions=counted)[0])


def test_a_token_outside_the_vocabulary_gives_nan_and_no_other_does(filled):
    tokens = jnp.asarray([[0, V, 3, -1, V - 1], [-V, 1, 2**31 - 1, -(2**31), 2]])
    y, _ = run(Embedding(), filled, tokens)
    np.testing.assert_array_equal(np.isnan(y).any(-1), [[0, 1, 0, 1, 0], [1, 0, 1, 1, 0]])
    np.testing.assert_array_equal(np.isnan(y).all(-1), np.isnan(y).any(-1))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint32"])
def test_tokens_of_any_integer_type_are_the_same_tokens(filled, dtype):
    np.testing.assert_array_equal(run(Embedding(), filled, TOKENS.astype(dtype))[0], run(Embedding(), filled)[0])


@pytest.mark.parametrize(("dtype", "vocab_size"), [("int8", 131), ("int8", 257), ("int16", 40009), ("int16", 65537)])
def test_a_negative_token_of_a_narrow_integer_type_gives_nan_though_the_vocabulary_is_larger_than_the_type(dtype, vocab_size):
    module = Embedding().make(Build(2), vocab_size)
    y = module.apply({"params": {"embedding": jnp.ones((vocab_size, 2))}}, jnp.asarray([[-1, 0, 127, -128]], dtype), None)
    np.testing.assert_array_equal(np.isnan(y).all(-1), [[1, 0, 0, 1]])


def test_a_position_beyond_the_learned_table_gives_nan_and_no_other_does(filled):
    positions = jnp.asarray([[0, L - 1, L, 5, 100], [0, 1, 2, 3, 4]])
    y, _ = run(Embedding(Learned()), filled, positions=positions)
    np.testing.assert_array_equal(np.isnan(y).all(-1), [[0, 0, 1, 0, 1], [0, 0, 0, 0, 0]])


def test_the_gradient_of_the_table_counts_each_use(close, filled):
    module = Embedding(scale=True).make(BUILD, V)
    variables = filled(module, TOKENS, None)
    gradient = jax.jit(jax.grad(lambda v: module.apply(v, TOKENS, None).sum()))(variables)["params"]["embedding"]
    uses = np.bincount(np.asarray(TOKENS).ravel(), minlength=V)
    close(gradient, np.broadcast_to(uses[:, None] * D**0.5, (V, D)))


def test_dropout_is_on_in_training_only(filled):
    config = Embedding(dropout=0.5)
    plain, _ = run(config, filled)
    module = config.make(Build(D, max_length=L, training=True), V)
    y = module.apply(filled(config.make(BUILD, V), TOKENS, None), TOKENS, None, rngs={"dropout": jax.random.key(0)})
    kept = np.asarray(y) != 0
    assert 0.3 < kept.mean() < 0.7
    np.testing.assert_allclose(np.asarray(y)[kept], 2 * np.asarray(plain)[kept], rtol=1e-6)


def test_the_table_is_kept_in_one_dtype_and_read_in_another(filled):
    build = Build(D, max_length=L, precision=Precision("float32", compute="bfloat16"))
    for config in (Embedding(Learned(), scale=True), Embedding(Sinusoidal())):
        y, _ = run(config, filled, build=build)
        variables = jax.eval_shape(lambda config=config: config.make(build, V).init(jax.random.key(0), TOKENS, None))
        assert y.dtype == jnp.bfloat16
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_sinusoids_need_an_even_width():
    with pytest.raises(ValueError, match="Sinusoidal: expected an even d_model, received 13"):
        Sinusoidal().make(Build(13))
