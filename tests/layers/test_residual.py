from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.layers import (
    Attention,
    Branch,
    Build,
    Causal,
    Context,
    Dense,
    Gated,
    Layer,
    LayerNorm,
    Mixer,
    MixerModule,
    NoNorm,
    Parallel,
    Residual,
    RMSNorm,
)

pytestmark = pytest.mark.usefixtures("quick_compile")
B, T, D = 2, 5, 19
BUILD = Build(D)


def rms(x, params):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * params["scale"]


def layer_norm(x, params):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * params["scale"] + params["bias"]


def dense(x, params):
    return np.maximum(x @ params["up"]["kernel"], 0) @ params["down"]["kernel"]


def doubles(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


@pytest.mark.parametrize("places", [(), ("pre",), ("post",), ("after",), ("pre", "post"), ("pre", "post", "after")], ids="_".join)
def test_norms_sit_before_the_layer_after_it_and_after_the_sum(close, normal, filled, places):
    kinds = {"pre": RMSNorm(), "post": LayerNorm(), "after": RMSNorm()}
    module = Residual(Dense(7, activation="relu"), **{place: kinds[place] for place in places}).make(BUILD)
    x = normal(B, T, D)
    variables = filled(module, x, Context())
    p = doubles(variables["params"])
    assert set(p) == {"layer", *places}
    stream = np.asarray(x, np.float64)
    y = rms(stream, p["pre"]) if "pre" in places else stream
    y = dense(y, p["layer"])
    y = layer_norm(y, p["post"]) if "post" in places else y
    y = stream + y
    y = rms(y, p["after"]) if "after" in places else y
    got, cache = jax.jit(module.apply)(variables, x, Context())
    close(got, y)
    assert cache is None


def test_dropout_is_of_what_is_added_after_its_norm_and_not_of_the_stream(normal, filled):
    x = normal(B, T, D)
    config = Residual(Dense(7), post=RMSNorm(), dropout=0.5)
    variables = filled(config.make(BUILD), x, Context())
    plain = np.asarray(config.make(BUILD).apply(variables, x, Context())[0]) - x
    training = config.make(Build(D, training=True))
    added = np.asarray(training.apply(variables, x, Context(), rngs={"dropout": jax.random.key(0)})[0]) - x
    dropped = added == 0
    assert 0.3 < dropped.mean() < 0.7
    np.testing.assert_allclose(added[~dropped], 2 * plain[~dropped], rtol=1e-4, atol=1e-5)


def test_parallel_branches_read_the_same_input_and_are_summed_each_with_its_own_norm(close, normal, filled):
    config = Residual(
        Parallel((Dense(7, activation="relu"), Branch(Dense(11, activation="relu"), pre=LayerNorm()), Branch(Dense(3, activation="relu")))), pre=RMSNorm()
    )
    module, x = config.make(BUILD), normal(B, T, D)
    variables = filled(module, x, Context())
    p, stream = doubles(variables["params"]), np.asarray(x, np.float64)
    branches = [p["layer"][f"branches_{n}"] for n in range(3)]
    y = rms(stream, p["pre"])
    added = dense(y, branches[0]) + dense(layer_norm(y, branches[1]["pre"]), branches[1]["layer"]) + dense(y, branches[2]["layer"])
    close(jax.jit(module.apply)(variables, x, Context())[0], stream + added)


def test_steps_through_parallel_branches_equal_the_whole(close, normal, filled):
    branch = partial(Attention, 2, mask=Causal(), head_dim=5)
    layer = Parallel((branch(), Gated(7), Branch(branch(num_kv_heads=1), pre=RMSNorm())))
    config, build, x = Residual(layer, pre=LayerNorm()), Build(D, backend="reference"), normal(B, T, D)
    module = config.make(build)
    variables = filled(module, x, Context())
    cache = layer.init_cache(build, B, T)
    assert [len(jax.tree.leaves(part)) for part in cache] == [2, 0, 2]
    step, steps = jax.jit(module.apply), []
    for t in range(T):
        at = Context(jnp.full((B, 1), t), kv_positions=jnp.broadcast_to(jnp.arange(T), (B, T)), index=jnp.int32(t))
        y, cache = step(variables, x[:, t : t + 1], at, cache)
        steps.append(y)
    close(jnp.concatenate(steps, 1), jax.jit(module.apply)(variables, x, Context())[0])


@dataclass(frozen=True)
class Shift(Mixer):
    """A mixer that cannot generate."""

    def make(self, build):
        return ShiftModule(self, build)


class ShiftModule(MixerModule):
    def __call__(self, x, context):
        return jnp.roll(x, 1, 1)


@dataclass(frozen=True)
class Stepless(Layer):
    def make(self, build):
        return SteplessModule()


class SteplessModule(nn.Module):
    def __call__(self, x, context):
        return x


@pytest.mark.parametrize("wrap", [lambda layer: layer, lambda layer: Branch(layer), lambda layer: Parallel((layer,))], ids=["alone", "branch", "parallel"])
def test_a_layer_of_one_s_own_without_a_step_works_but_is_named_where_text_is_generated(normal, wrap):
    x = normal(B, T, D)
    for layer, message in ((Shift(), "ShiftModule has no step.*Shift.init_cache"), (Stepless(), "SteplessModule has no step")):
        module = Residual(wrap(layer)).make(BUILD)
        expected = x + (jnp.roll(x, 1, 1) if isinstance(layer, Shift) else x)
        np.testing.assert_array_equal(module.apply({}, x, Context())[0], expected)
        with pytest.raises(NotImplementedError, match=message):
            module.apply({}, x, Context(), wrap(layer).init_cache(BUILD, B, T))


def test_a_config_without_make_says_so():
    @dataclass(frozen=True)
    class Nothing(Layer):
        pass

    with pytest.raises(NotImplementedError, match=r"Nothing must define make\(build\)"):
        Residual(Nothing(), pre=NoNorm()).make(BUILD).init(jax.random.key(0), jnp.zeros((1, 1, D)), Context())
