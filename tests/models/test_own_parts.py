"""The researcher's case: a decoder with a mixer and a score of one's own, written in one file beside one's experiment. Nothing in the package is edited."""

import json
import sys
import textwrap
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.command_line import import_module
from transformer_jax.config import from_json, to_json
from transformer_jax.layers import Gated, Group, Mixer, MixerModule, Residual, RMSNorm, Stack
from transformer_jax.models import DecoderOnlyConfig
from transformer_jax.precision import Precision

pytestmark = pytest.mark.usefixtures("quick_compile")
B, T, V = 2, 11, 29

MINE = '''
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import flax.linen as nn
from pallas_kernels import lookup
from transformer_jax.layers import (
    Attention, Causal, Gated, Group, LearnedScore, Linear, Mixer, MixerModule, Parameter, Residual, RMSNorm, Stack,
)
from transformer_jax.models import DecoderOnlyConfig


@dataclass(frozen=True)
class Average(Mixer):
    """y[t] = out(h[t]), h[t] = rate * h[t - 1] + (1 - rate) * x[t]."""

    rate: float = 0.9

    def make(self, build):
        return AverageModule(self, build)

    def init_cache(self, build, batch, length, memory_length=0):
        return jnp.zeros((batch, build.d_model), build.precision.compute)


class AverageModule(MixerModule):
    def setup(self):
        d = self.build.d_model
        self.out = Linear((d,), (d,), "attention_out", self.build)

    def __call__(self, x, context):
        return self.step(x, context, jnp.zeros_like(x[:, 0]))[0]

    def step(self, x, context, cache):
        def one(h, x):
            h = self.config.rate * h + (1 - self.config.rate) * x
            return h, h

        cache, y = jax.lax.scan(one, cache, jnp.swapaxes(x, 0, 1))
        return self.out(jnp.swapaxes(y, 0, 1)), cache


def near(s, i, table):
    return s + lookup(table, jnp.clip(i.q - i.k, 0, 7))


@dataclass(frozen=True)
class Near(LearnedScore):
    function = near

    def parameters(self, num_heads):
        return {"table": Parameter((num_heads, 8), "N", nn.initializers.normal(0.5))}


def model():
    attention = Residual(Attention(3, mask=Causal(), head_dim=6), pre=RMSNorm())
    average = Residual(Average(0.75), pre=RMSNorm())
    mlp = Residual(Gated(23), pre=RMSNorm())
    sandwich = (Group(2, (attention,)), Group(4, (attention, average, mlp)), Group(2, (mlp,)))
    return DecoderOnlyConfig(29, d_model=19, max_length=16, stack=Stack(sandwich, final_norm=RMSNorm(), score=(Near(),)))
'''


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "my_sandwich.py"
    path.write_text(textwrap.dedent(MINE))
    yield import_module(str(path))
    del sys.modules["my_sandwich"]


@pytest.fixture
def tokens():
    return jnp.asarray(np.random.default_rng(0).integers(0, V, (B, T)), jnp.int32)


def test_a_config_of_one_s_own_types_survives_json_and_names_them(mine):
    config = mine.model()
    text = to_json(config)
    assert from_json(text, DecoderOnlyConfig) == config
    assert json.loads(text)["stack"]["score"] == [{"type": "my_sandwich:Near"}]
    assert json.loads(text)["stack"]["groups"][1]["sublayers"][1]["layer"] == {"type": "my_sandwich:Average", "rate": 0.75}


def test_one_s_own_decoder_runs_and_its_shared_table_and_mixer_get_gradients_equal_to_differences(mine, tokens, filled):
    with jax.enable_x64(True):
        model = mine.model().make(precision=Precision("float64", compute="float64"))
        variables = filled(model, tokens)
        loss = jax.jit(lambda variables: jnp.square(model.apply(variables, tokens)).mean())
        gradient = jax.jit(jax.grad(loss))(variables)["params"]["stack"]
        assert gradient["scores_0"]["table"].shape == (3, 8)
        for path in (("scores_0", "table"), ("groups_1", "layers", "sublayers_1", "layer", "out", "kernel")):
            slope = part(gradient, path)
            along = slope / jnp.linalg.norm(slope)
            up, down = (loss(moved(variables, path, by * along)) for by in (1e-5, -1e-5))
            np.testing.assert_allclose((up - down) / 2e-5, (slope * along).sum(), rtol=1e-5)


def part(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def moved(variables, path, by):
    def move(key, leaf):
        return leaf + by if tuple(k.key for k in key)[-len(path) :] == path else leaf

    return jax.tree_util.tree_map_with_path(move, variables)


def test_the_residual_stream_of_layer_3_is_read_and_feeds_the_layers_after_it(mine, tokens, filled):
    model = mine.model().make()
    variables = filled(model, tokens)
    logits, state = jax.jit(partial(model.apply, mutable=["intermediates"]))(variables, tokens)
    streams = [state["intermediates"]["stack"][f"groups_{n}"]["layers"]["residual"][0] for n in range(3)]
    layers = jnp.concatenate(streams)
    assert layers.shape == (8, B, T, 19)
    # The last layer's stream, normed and projected on the embeddings, is the logits.
    last = np.asarray(layers[7], np.float64)
    normed = last / np.sqrt((last * last).mean(-1, keepdims=True) + 1e-6) * variables["params"]["stack"]["final_norm"]["scale"]
    expected = normed @ np.asarray(variables["params"]["embedding"]["embedding"], np.float64).T
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert not np.allclose(layers[3], layers[2])


def test_one_s_own_mixer_generates_step_by_step_what_the_whole_gives(close, mine, tokens, filled):
    model = mine.model().make()
    variables = filled(model, tokens)
    whole = jax.jit(model.apply)(variables, tokens)
    cache, steps, step = model.init_cache(B, T), [], jax.jit(partial(model.apply, method="step"))
    for at in range(T):
        y, cache = step(variables, tokens[:, at : at + 1], cache)
        steps.append(y)
    close(jnp.concatenate(steps, 1), whole, times=3)


def test_one_s_own_mixer_is_told_of_padding(close):
    class Mean(MixerModule):
        def __call__(self, x, context):
            valid = jnp.ones(x.shape[:2], bool) if context.valid is None else context.valid
            weights = valid[..., None].astype(x.dtype)
            return jnp.cumsum(x * weights, 1) / jnp.maximum(jnp.cumsum(weights, 1), 1)

    @dataclass(frozen=True)
    class RunningMean(Mixer):
        def make(self, build):
            return Mean(self, build)

    stack = Stack((Group(2, (Residual(RunningMean(), pre=RMSNorm()), Residual(Gated(23)))),))
    model = DecoderOnlyConfig(V, d_model=10, max_length=16, stack=stack).make()
    tokens = np.random.default_rng(0).integers(0, V, (2, 9)).astype("int32")
    variables = model.init(jax.random.key(0), tokens)
    padded, valid = np.full((2, 13), 3, "int32"), np.zeros((2, 13), bool)
    padded[:, 4:], valid[:, 4:] = tokens, True
    close(model.apply(variables, padded, valid=valid)[:, 4:], model.apply(variables, tokens))
    seen = model.apply(variables, padded)[:, 4:]
    assert abs(seen - model.apply(variables, tokens)).max() > 1e-3
