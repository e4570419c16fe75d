import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError

from transformer_jax.layers import Build, Context, Dense, FeedForward, Gated, NoMlp

pytestmark = pytest.mark.usefixtures("quick_compile")
D, F = 19, 23
ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "squared_relu": lambda x: np.maximum(x, 0) ** 2,
}


def linear(x, params):
    return x @ params["kernel"] + params.get("bias", 0)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense_is_down_of_activation_of_up(close, normal, filled, activation, bias):
    module, x = Dense(F, activation=activation, bias=bias).make(Build(D)), normal(2, 5, D)
    variables = filled(module, x, Context())
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    assert [set(p[name]) for name in ("up", "down")] == [{"kernel", "bias"} if bias else {"kernel"}] * 2
    close(jax.jit(module.apply)(variables, x, Context()), linear(ACTIVATIONS[activation](linear(np.asarray(x, np.float64), p["up"])), p["down"]))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated_is_down_of_activation_of_gate_times_up(close, normal, filled, activation, bias):
    module, x = Gated(F, activation=activation, bias=bias).make(Build(D)), normal(2, 5, D)
    variables = filled(module, x, Context())
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    x64 = np.asarray(x, np.float64)
    close(jax.jit(module.apply)(variables, x, Context()), linear(ACTIVATIONS[activation](linear(x64, p["gate"])) * linear(x64, p["up"]), p["down"]))


def test_a_limit_cuts_the_gate_above_and_up_on_both_sides_before_the_offset_is_added(close, normal, filled):
    config = Gated(F, activation="quick_gelu", bias=True, limit=1.5, up_offset=1.0)
    module, x = config.make(Build(D)), normal(2, 5, D)
    variables = filled(module, x, Context())
    p, x64 = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"]), np.asarray(x, np.float64)
    gate, up = linear(x64, p["gate"]), linear(x64, p["up"])
    assert gate.min() < -1.5 and gate.max() > 1.5 and up.min() < -1.5 and up.max() > 1.5
    gate, up = np.where(gate > 1.5, 1.5, gate), np.where(np.abs(up) > 1.5, 1.5 * np.sign(up), up)
    close(jax.jit(module.apply)(variables, x, Context()), linear(gate / (1 + np.exp(-1.702 * gate)) * (up + 1), p["down"]))
    with pytest.raises(ValueError, match=r"Gated.limit: expected more than 0, received 0.0"):
        Gated(F, limit=0.0)


@dataclass(frozen=True)
class Bilinear(FeedForward):
    d_ff: int

    def compute(self, x, linear, drop):
        h = linear("left", x, self.d_ff) * linear("right", x, self.d_ff)
        return linear("down", drop(h), x.shape[-1])


def test_an_mlp_of_one_s_own_is_written_over_linear_layers(close, normal, filled):
    module, x = Bilinear(F).make(Build(D)), normal(2, 5, D)
    variables = filled(module, x, Context())
    p, x64 = variables["params"], np.asarray(x, np.float64)
    close(jax.jit(module.apply)(variables, x, Context()), linear(linear(x64, p["left"]) * linear(x64, p["right"]), p["down"]))
    with pytest.raises(NotImplementedError, match=r"FeedForward must define compute\(x, linear, drop\)"):
        FeedForward().make(Build(D)).init(jax.random.key(0), x, Context())


def test_no_mlp_adds_nothing_and_has_no_parameters(normal):
    x = normal(2, 5, D)
    y, variables = NoMlp().make(Build(D)).init_with_output(jax.random.key(0), x, Context())
    np.testing.assert_array_equal(y, np.zeros((2, 5, D)))
    assert variables == {}


@pytest.mark.parametrize("kind", [Dense, Gated])
def test_gelu_tanh_is_a_choice_too_and_not_the_exact_one(normal, filled, kind):
    x = normal(2, 5, D)
    variables = filled(kind(F).make(Build(D)), x, Context())
    exact, approximate = (kind(F, activation=name).make(Build(D)).apply(variables, x, Context()) for name in ("gelu", "gelu_tanh"))
    assert 1e-6 < np.abs(exact - approximate).max() < 1e-2


def test_dense_defaults_to_gelu_and_gated_to_silu():
    assert (Dense(F).activation, Gated(F).activation) == ("gelu", "silu")


@pytest.mark.parametrize("kind", [Dense, Gated])
def test_dropout_zeroes_hidden_features_in_training_and_divides_the_rest(normal, filled, kind):
    x = normal(2, 5, D)
    still, training = (kind(F, dropout=0.5).make(Build(D, training=training)) for training in (False, True))
    # Down is the identity, so that the hidden features are seen.
    variables = {"params": {**filled(still, x, Context())["params"], "down": {"kernel": jnp.eye(F, D)}}}
    hidden = np.asarray(still.apply(variables, x, Context()))
    one, again, other = (np.asarray(training.apply(variables, x, Context(), rngs={"dropout": jax.random.key(seed)})) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    kept = one != 0
    assert 0.3 < kept.mean() < 0.7
    np.testing.assert_allclose(one[kept], 2 * hidden[kept], rtol=1e-6)
    with pytest.raises(InvalidRngError, match="dropout"):
        training.apply(variables, x, Context())


def test_a_step_is_a_call_and_remembers_nothing(normal, filled):
    config, x = Gated(F), normal(2, 5, D)
    module = config.make(Build(D))
    variables = filled(module, x, Context())
    cache = config.init_cache(Build(D), 2, 7)
    assert cache == ()
    y, cache = module.apply(variables, x, Context(), cache, method="step")
    assert cache == ()
    np.testing.assert_array_equal(y, module.apply(variables, x, Context()))
