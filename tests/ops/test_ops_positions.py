import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer_jax.ops.positions import frequencies, rotate, sinusoid

pytestmark = pytest.mark.usefixtures("quick_compile")


turn = jax.jit(rotate)


def turned(x, positions, rates):
    """Pairs as complex numbers, multiplied by e^(i p rate), in float64."""
    x, rates = np.asarray(x, np.float64), np.asarray(rates, np.float64)
    half = len(rates)
    z = (x[..., :half] + 1j * x[..., half : 2 * half]) * np.exp(1j * np.asarray(positions)[:, :, None, None] * rates)
    return np.concatenate([z.real, z.imag, x[..., 2 * half :]], -1)


@pytest.mark.parametrize("turning", [2, 10, 12])
def test_rotate_multiplies_complex_pairs_and_leaves_the_other_features_alone(close, normal, turning):
    x, positions = normal(2, 5, 3, 13), jnp.asarray([[0, 1, 2, 17, 5], [61, 7, 7, 3, 0]])
    rates = frequencies(turning, 1e4)
    y = turn(x, positions, rates)
    close(y, turned(x, positions, rates))
    np.testing.assert_array_equal(y[..., turning:], x[..., turning:])
    np.testing.assert_array_equal(turn(x, positions[:1] * 0, rates), x)


def test_the_amplitude_multiplies_what_turns(close, normal):
    x, positions = normal(2, 5, 3, 13), jnp.asarray([[0, 1, 2, 17, 5], [61, 7, 7, 3, 0]])
    rates = frequencies(10, 1e4)
    expected = turned(x, positions, rates)
    expected[..., :10] *= 1.3
    close(turn(x, positions, rates, 1.3), expected)


def test_one_row_of_positions_serves_the_whole_batch(normal):
    x, positions = normal(3, 5, 2, 6), jnp.arange(5)[None] + 3
    np.testing.assert_array_equal(turn(x, positions, frequencies(6, 1e4)), turn(x, jnp.tile(positions, (3, 1)), frequencies(6, 1e4)))


@given(shift=st.integers(-50, 500), seed=st.integers(0, 99))
def test_products_of_turned_queries_and_keys_depend_on_differences_of_positions_only(shift, seed):
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        q, k = (jnp.asarray(rng.normal(size=(1, 7, 1, 10))) for _ in range(2))
        positions, rates = jnp.asarray(rng.integers(0, 90, (1, 7))), frequencies(10, 1e4, jnp.float64)

        def products(by):
            return np.einsum("btnh,bsnh->ts", turn(q, positions + by, rates), turn(k, positions + by, rates))

        np.testing.assert_allclose(products(shift), products(0), atol=1e-11)
        moved = np.einsum("btnh,bsnh->ts", turn(q, positions + 1, rates), turn(k, positions, rates))
        assert np.abs(moved - products(0)).max() > 1e-3


def test_angles_of_half_precision_inputs_are_float32_at_positions_that_bfloat16_cannot_tell_apart(normal):
    x, positions = normal(1, 3, 2, 6, dtype="bfloat16"), jnp.asarray([[4097, 4099, 4101]])
    y = turn(x, positions, frequencies(6, 1e2))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float64), turned(x, positions, frequencies(6, 1e2)), rtol=0, atol=2e-2)
    assert np.abs(np.asarray(y, np.float64) - turned(x, positions + 1, frequencies(6, 1e2))).max() > 0.1


def test_float64_in_float64_out(close, normal):
    with jax.enable_x64(True):
        x, positions = normal(1, 3, 2, 6, dtype="float64"), jnp.asarray([[0, 1, 301]])
        rates = frequencies(6, 1e4, jnp.float64)
        close(turn(x, positions, rates), turned(x, positions, rates))


@pytest.mark.parametrize(("features", "base"), [(2, 1e4), (14, 1e4), (10, 37.0)])
def test_sinusoid_equals_its_formula_written_with_loops(close, features, base):
    positions = [[0, 1, 2, 7], [61, 3, 3, 5]]
    expected = np.zeros((2, 4, features))
    for b, row in enumerate(positions):
        for t, p in enumerate(row):
            for i in range(features // 2):
                angle = p / base ** (2 * i / features)
                expected[b, t, 2 * i], expected[b, t, 2 * i + 1] = math.sin(angle), math.cos(angle)
    close(jax.jit(lambda p: sinusoid(p, features, base=base))(jnp.asarray(positions)), expected)
    with jax.enable_x64(True):
        close(jax.jit(lambda p: sinusoid(p, features, base=base, dtype=jnp.float64))(jnp.asarray(positions)), expected)


def test_frequencies_start_at_1_and_fall_by_a_constant_factor_to_nearly_1_over_base():
    rates = np.asarray(frequencies(10, 1e4), np.float64)
    np.testing.assert_allclose(rates, [1e4 ** (-i / 5) for i in range(5)], rtol=1e-6)
