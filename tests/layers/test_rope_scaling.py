import bisect
import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from transformer_jax.config import from_json, to_json
from transformer_jax.layers import (
    Attention,
    Build,
    Causal,
    Dense,
    Group,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    NoScaling,
    NtkScaling,
    Residual,
    RMSNorm,
    Rope,
    RopeScaling,
    Stack,
    YarnScaling,
)
from transformer_jax.models import DecoderOnlyConfig

pytestmark = pytest.mark.usefixtures("quick_compile")

SHORT, LONG = (1.0, 1.1, 1.25, 1.5, 1.7), (1.0, 2.5, 7.0, 22.0, 60.0)
PHI = LongRopeScaling(SHORT, long_factors=LONG, original_length=4096)
YARN = YarnScaling(40.0, original_length=4096)
# Of ten features that turn, with original lengths that leave some pairs fast and some slow.
SCALINGS = [
    LinearScaling(3.0),
    NtkScaling(3.0),
    YarnScaling(3.0, original_length=97),
    PHI,
    Llama3Scaling(3.0, original_length=97),
]
by_name = pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: type(scaling).__name__)


def rates_of(scaling, features, theta=1e4, max_length=131072):
    with jax.enable_x64(True):
        return np.asarray(scaling.rates(features, theta, Build(2, max_length=max_length), jnp.float64))


@functools.cache
def compiled(scaling):
    return jax.jit(Rope(fraction=0.8, scaling=scaling).make(Build(2, max_length=131072)).apply)


def turn(scaling, x, positions):
    return np.asarray(compiled(scaling)({}, x, positions), np.float64)


# From transformers 5.23: LlamaConfig(head_dim=..., rope_theta=..., max_position_embeddings=...) with the scaling's fields as rope_parameters, float32.
GOLDENS = [
    (LinearScaling(4.0), 16, 1e4, 8192, {0: 0.25, 2: 0.025, 4: 0.0025, 7: 7.905695e-05}, 1),
    (YarnScaling(4.0, original_length=32768), 128, 1e6, 131072, {0: 1, 16: 0.03162278, 30: 0.001064361, 32: 0.0006029411, 63: 3.102344e-07}, 1.138629),
    (
        YarnScaling(32.0, original_length=4096, truncate=False),
        64, 150000.0, 131072, {0: 1, 8: 0.05081327, 14: 0.002093793, 16: 0.0004564839, 24: 4.099978e-06, 31: 3.023511e-07}, 1.346574,
    ),
    (YARN.replace(mscale=1.0, mscale_all_dim=1.0), 64, 1e4, 163840, {8: 0.1, 14: 0.01244796, 16: 0.0055, 24: 2.5e-05, 31: 3.333804e-06}, 1),
    (YARN.replace(mscale=0.707, mscale_all_dim=0.5), 64, 1e4, 163840, {14: 0.01244796}, 1.064469),
    (YARN.replace(attention_factor=1.5), 64, 1e4, 163840, {14: 0.01244796}, 1.5),
    (YarnScaling(2.0, original_length=32), 8, 1e4, 64, {0: 1, 1: 0.05, 2: 0.005, 3: 0.0005}, 1.069315),
    (Llama3Scaling(8.0, original_length=8192), 128, 5e5, 131072, {16: 0.03760603, 30: 0.001371894, 32: 0.000524846, 63: 3.068926e-07}, 1),
    (Llama3Scaling(32.0, original_length=8192), 64, 5e5, 131072, {8: 0.03760603, 14: 0.003211446, 16: 0.0004295567, 31: 9.418306e-08}, 1),
    (PHI, 10, 1e4, 131072, {0: 1, 1: 0.06339572, 2: 0.003588409, 3: 0.0001809578, 4: 1.051595e-05}, 1.190238),
    (PHI.replace(factor=32.0), 10, 1e4, 4096, {0: 1, 1: 0.1440812, 2: 0.02009509, 3: 0.002654047, 4: 0.0003711513}, 1.190238),
    (PHI.replace(factor=8.0), 10, 1e4, 4096, {1: 0.1440812}, 1.118034),
]  # fmt: skip


@pytest.mark.parametrize(("scaling", "features", "theta", "max_length", "rates", "amplitude"), GOLDENS)
def test_rates_and_amplitudes_are_those_of_transformers(scaling, features, theta, max_length, rates, amplitude):
    actual = rates_of(scaling, features, theta, max_length)
    assert actual.shape == (features // 2,)
    np.testing.assert_allclose(actual[list(rates)], list(rates.values()), rtol=1e-6)
    np.testing.assert_allclose(scaling.amplitude(Build(2, max_length=max_length)), amplitude, rtol=1e-6)


features = st.integers(2, 40).map(lambda n: 2 * n)
thetas = st.floats(50, 1e6)
factors = st.floats(1, 100)
lengths = st.integers(32, 40000)


@given(features, thetas, factors)
def test_linear_divides_positions_and_ntk_changes_theta(features, theta, factor):
    np.testing.assert_allclose(rates_of(LinearScaling(factor), features, theta), [theta ** (-2 * i / features) / factor for i in range(features // 2)])
    larger = theta * factor ** (features / (features - 2))
    rates = rates_of(NtkScaling(factor), features, theta)
    np.testing.assert_allclose(rates, [larger ** (-2 * i / features) for i in range(features // 2)], rtol=1e-11)
    np.testing.assert_allclose(rates[-1] * factor, theta ** (-(features - 2) / features), rtol=1e-11)


@given(features, thetas, factors, lengths, st.floats(4, 64), st.floats(0.5, 3), st.booleans())
@example(10, 50.0, 3.0, 4825, 64.0, 0.5, True)  # beta_slow's pair would be beyond the last feature
def test_yarn_keeps_pairs_up_to_that_of_beta_fast_and_divides_those_from_that_of_beta_slow_on(features, theta, factor, length, beta_fast, beta_slow, truncate):
    scaling = YarnScaling(factor, original_length=length, beta_fast=beta_fast, beta_slow=beta_slow, truncate=truncate)

    def pair(turns):  # solves length * theta^(-2i / features) = 2 pi turns
        return np.log(length / (2 * np.pi * turns)) / np.log(theta) * features / 2

    first, last = pair(beta_fast), pair(beta_slow)
    if truncate:
        first, last = np.floor(first), np.ceil(last)
    first, last = max(first, 0), min(last, features - 1)
    expected = []
    for i in range(features // 2):
        rate, divided = theta ** (-2 * i / features), 0.0 if i <= first else 1.0 if i >= last else (i - first) / (last - first)
        expected.append((1 - divided) * rate + divided * rate / factor)
    np.testing.assert_allclose(rates_of(scaling, features, theta), expected, rtol=1e-9)
    np.testing.assert_allclose(scaling.amplitude(Build(2)), 1 + np.log(factor) / 10)


@given(features, thetas, factors, lengths, st.floats(0.5, 2), st.floats(3, 40))
def test_llama3_decides_by_wavelength(features, theta, factor, length, low, high):
    expected = []
    for i in range(features // 2):
        rate = theta ** (-2 * i / features)
        wavelength = 2 * np.pi / rate
        kept = (length / wavelength - low) / (high - low)
        kind = bisect.bisect([length / high, length / low], wavelength)
        expected.append([rate, kept * rate + (1 - kept) * rate / factor, rate / factor][kind])
    scaling = Llama3Scaling(factor, original_length=length, low_freq_factor=low, high_freq_factor=high)
    np.testing.assert_allclose(rates_of(scaling, features, theta), expected, rtol=1e-9)


def test_longrope_s_long_factors_serve_a_model_whose_max_length_is_beyond_the_original():
    plain = 1e4 ** (-np.arange(5) / 5)
    for max_length, factors in ((4095, SHORT), (4096, SHORT), (4097, LONG), (131072, LONG)):
        np.testing.assert_allclose(rates_of(PHI, 10, max_length=max_length), plain / factors)
        grown = max(1, max_length / 4096)
        np.testing.assert_allclose(PHI.amplitude(Build(2, max_length=max_length)), np.sqrt(1 + np.log(grown) / np.log(4096)))
    assert PHI.replace(attention_factor=1.5).amplitude(Build(2, max_length=131072)) == 1.5


@pytest.mark.parametrize(
    "scaling",
    [
        LinearScaling(1.0),
        NtkScaling(1.0),
        YarnScaling(1.0, original_length=97, mscale_all_dim=0.7),
        LongRopeScaling((1.0,) * 5, long_factors=(1.0,) * 5, original_length=97, factor=1.0),
        Llama3Scaling(1.0, original_length=97),
    ],
)
def test_a_factor_of_1_is_no_scaling(scaling):
    np.testing.assert_allclose(rates_of(scaling, 10), rates_of(NoScaling(), 10), rtol=1e-14)
    assert scaling.amplitude(Build(2, max_length=131072)) == 1


@by_name
def test_turned_features_are_longer_by_the_amplitude_and_the_others_stay(scaling, normal):
    x, positions = normal(2, 7, 3, 13), jnp.asarray(np.random.default_rng(0).integers(0, 9000, (2, 7)))
    y = turn(scaling, x, positions)
    lengths = [np.hypot(a[..., :5], a[..., 5:10]) for a in (y, np.asarray(x, np.float64))]
    np.testing.assert_allclose(lengths[0], lengths[1] * scaling.amplitude(Build(2, max_length=131072)), rtol=1e-5)
    np.testing.assert_array_equal(y[..., 10:], x[..., 10:])


@by_name
@given(shift=st.integers(-50, 500), seed=st.integers(0, 99))
def test_products_depend_on_differences_of_positions_only(scaling, shift, seed):
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        q, k = (jnp.asarray(rng.normal(size=(1, 7, 1, 13))) for _ in range(2))
        positions = jnp.asarray(rng.integers(0, 90, (1, 7)))

        def products(by, also=0):
            return np.einsum("btnh,bsnh->ts", turn(scaling, q, positions + by + also), turn(scaling, k, positions + by))

        np.testing.assert_allclose(products(shift), products(0), atol=1e-11)
        assert np.abs(products(0, also=1) - products(0)).max() > 1e-3


def test_angles_of_half_precision_inputs_are_float32():
    rates = YARN.rates(10, 1e4, Build(2), jnp.float32)
    assert rates.dtype == jnp.float32
    np.testing.assert_allclose(rates, rates_of(YARN, 10), rtol=1e-6)
    x, positions = jnp.ones((1, 2, 1, 13), jnp.bfloat16), jnp.asarray([[4097, 4099]])
    exact = turn(YARN, jnp.ones((1, 2, 1, 13)), positions)
    assert np.abs(turn(YARN, x, positions) - exact).max() < 2**-8 * np.abs(exact).max()


def decoder():
    """A layer of each scaling, and one whose scaling is the default."""
    ropes = [Rope(100.0, scaling=scaling) for scaling in SCALINGS[:3]]
    ropes += [Rope(100.0, scaling=PHI.replace(original_length=11)), Rope(100.0, scaling=SCALINGS[4]), Rope(100.0)]
    layers = [Residual(Attention(2, mask=Causal(), head_dim=10, position=rope), pre=RMSNorm()) for rope in ropes]
    stack = Stack((Group(1, (*layers, Residual(Dense(23), pre=RMSNorm()))),), final_norm=RMSNorm())
    return DecoderOnlyConfig(29, d_model=19, max_length=17, stack=stack)


@pytest.mark.slow
def test_a_decoder_of_all_scalings_survives_json_trains_and_decodes_as_it_reads(close, filled):
    config = from_json(to_json(decoder()), DecoderOnlyConfig)
    assert config == decoder()
    model, tokens = config.make(), jnp.asarray(np.random.default_rng(0).integers(0, 29, (2, 13)), jnp.int32)
    variables, optimizer = model.init(jax.random.key(0), tokens), optax.adam(1e-2)

    def loss(variables):
        return optax.softmax_cross_entropy_with_integer_labels(model.apply(variables, tokens[:, :-1]), tokens[:, 1:]).mean()

    @jax.jit
    def train(variables):
        def step(carry, _):
            value, gradients = jax.value_and_grad(loss)(carry[0])
            updates, state = optimizer.update(gradients, carry[1])
            return (optax.apply_updates(carry[0], updates), state), value

        return jax.lax.scan(step, (variables, optimizer.init(variables)), length=30)[1]

    losses = train(variables)
    assert losses[-1] < losses[0] / 2

    variables = filled(model, tokens)
    whole = jax.jit(model.apply)(variables, tokens)
    cache, step, steps = model.init_cache(2, 13), jax.jit(lambda *args: model.apply(*args, method="step")), []
    for at in range(13):
        logits, cache = step(variables, tokens[:, at : at + 1], cache)
        steps.append(logits)
    close(jnp.concatenate(steps, 1), whole, times=3)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (LinearScaling, {"factor": 0.5}, r"LinearScaling.factor: expected at least 1, received 0.5"),
        (LinearScaling, {"factor": float("nan")}, r"LinearScaling.factor: expected at least 1, received nan"),
        (NtkScaling, {"factor": 0.0}, r"NtkScaling.factor: expected at least 1, received 0.0"),
        (YarnScaling, {"factor": -1.0, "original_length": 64}, r"YarnScaling.factor: expected at least 1, received -1.0"),
        (YarnScaling, {"factor": 2.0, "original_length": 0}, r"YarnScaling.original_length: expected more than 0, received 0"),
        (YarnScaling, {"factor": 2.0, "original_length": 64, "beta_slow": 0.0}, r"YarnScaling.beta_slow: expected more than 0, received 0.0"),
        (YarnScaling, {"factor": 2.0, "original_length": 64, "beta_slow": 32.0}, r"YarnScaling.beta_fast: expected more than beta_slow = 32.0, received 32.0"),
        (YarnScaling, {"factor": 2.0, "original_length": 64, "mscale_all_dim": -1.0}, r"YarnScaling.mscale_all_dim: expected at least 0, received -1.0"),
        (YarnScaling, {"factor": 2.0, "original_length": 64, "attention_factor": 0.0}, r"YarnScaling.attention_factor: expected more than 0, received 0.0"),
        (
            LongRopeScaling, {"short_factors": (1.0, 0.0), "long_factors": (1.0, 2.0), "original_length": 64},
            r"LongRopeScaling.short_factors: expected numbers above 0, received \(1.0, 0.0\)",
        ),
        (
            LongRopeScaling, {"short_factors": (1.0,), "long_factors": (1.0,), "original_length": 1},
            r"LongRopeScaling.original_length: expected at least 2, received 1",
        ),
        (
            Llama3Scaling, {"factor": 2.0, "original_length": 64, "high_freq_factor": 1.0},
            r"Llama3Scaling.high_freq_factor: expected more than low_freq_factor = 1.0, received 1.0",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(kind, fields, message):
    with pytest.raises(ValueError, match=message):
        kind(**fields)


def test_what_cannot_work_with_the_head_is_refused_when_it_is_known():
    with pytest.raises(ValueError, match=r"LongRopeScaling.long_factors: expected 4, one for each pair of features that turn, received 5"):
        rates_of(PHI, 8)
    with pytest.raises(ValueError, match=r"ntk: features: expected more than 2 that turn, received 2"):
        rates_of(NtkScaling(2.0), 2)
    with pytest.raises(ValueError, match=r"yarn: base: expected more than 1, received 1.0"):
        rates_of(YARN, 8, theta=1.0)


def test_the_base_says_what_a_scaling_of_one_s_own_must_define(normal):
    @dataclass(frozen=True)
    class Nothing(RopeScaling):
        pass

    @dataclass(frozen=True)
    class Halved(RopeScaling):
        def rates(self, features, theta, build, dtype):
            return jnp.full((features // 2,), 0.5, dtype)

    with pytest.raises(NotImplementedError, match=r"Nothing must define rates\(features, theta, build, dtype\)"):
        turn(Nothing(), normal(1, 3, 1, 3), jnp.arange(3)[None])
    x = normal(1, 3, 1, 3)
    np.testing.assert_allclose(turn(Halved(), x, 2 * jnp.arange(3)[None]), turn(NoScaling(), x, jnp.arange(3)[None]), atol=1e-6)
