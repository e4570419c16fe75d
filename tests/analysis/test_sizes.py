"""Parameters and caches in numbers, against formulas and against the arrays themselves."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from transformer_jax.analysis import CacheBytes, cache_bytes, parameters
from transformer_jax.layers import Attention, Causal, Dense, Embedding, Group, LayerNorm, Learned, Mixer, MixerModule, Residual, Stack
from transformer_jax.models import DecoderOnlyConfig
from transformer_jax.precision import Precision

TOKENS = jax.ShapeDtypeStruct((1, 3), jnp.int32)


def gpt(L: int, D: int, V: int, S: int) -> DecoderOnlyConfig:
    sublayers = (Residual(Attention(3, mask=Causal()), pre=LayerNorm()), Residual(Dense(4 * D), pre=LayerNorm()))
    return DecoderOnlyConfig(V, d_model=D, max_length=S, stack=Stack((Group(L, sublayers),), final_norm=LayerNorm()), embedding=Embedding(Learned()))


def test_a_gpt_has_12_d_squared_a_layer_and_its_norms_and_tables() -> None:
    L, D, V, S = 5, 21, 29, 23
    found = parameters(gpt(L, D, V, S).make(), TOKENS)
    assert sum(found.values()) == 12 * L * D**2 + 2 * D * (2 * L + 1) + V * D + S * D
    assert found["embedding", "position"] == S * D
    assert found["stack", "groups_0", "layers", "sublayers_1", "layer", "up"] == 4 * L * D**2


def test_the_count_is_that_of_the_arrays(cases: dict[str, Any], filled: Callable[..., Any], name: str) -> None:
    config = cases[name].config
    arrays = jax.tree.leaves(filled(config.make(), *config.example()))
    assert sum(parameters(config.make(), *config.example()).values()) == sum(a.size for a in arrays)


def test_any_linen_module_is_counted() -> None:
    assert parameters(nn.Sequential([nn.Dense(7), nn.Dense(5)]), jnp.ones((2, 3))) == {("layers_0",): 3 * 7 + 7, ("layers_1",): 7 * 5 + 5}


@pytest.mark.parametrize(("dtype", "itemsize"), [("float32", 4), ("bfloat16", 2)])
@pytest.mark.parametrize("stacked", [True, False])
def test_a_cache_takes_keys_and_values_of_every_layer_for_each_token(dtype: Any, itemsize: int, stacked: bool) -> None:
    L, D = 5, 21
    found = cache_bytes(gpt(L, D, 29, 23).make(precision=Precision(compute=dtype), stacked=stacked))
    assert found["key"] == found["value"] == CacheBytes(per_token=L * D * itemsize, fixed=0)
    assert found["positions"].per_token == 4 and found["valid"].per_token == 1 and found["index"] == CacheBytes(0, fixed=4)


def test_a_cache_grows_with_the_source_by_the_keys_and_values_of_cross_attention(cases: dict[str, Any]) -> None:
    L, D = 3, 64
    found = cache_bytes(cases["t5"].config.make())
    assert found["key"] == found["value"] == CacheBytes(per_token=L * D * 4, fixed=0, per_source=L * D * 4)
    assert found["positions"] == CacheBytes(4, 0) and found["memory_valid"] == CacheBytes(0, 0, per_source=1)


@dataclass(frozen=True)
class Recurrent(Mixer):
    state: int = 7

    def make(self, build: Any) -> nn.Module:
        return MixerModule(self, build)

    def init_cache(self, build: Any, batch: int, length: int, memory_length: int = 0) -> Any:
        return {"state": jnp.zeros((batch, self.state, build.d_model))}


def test_a_state_that_does_not_grow_is_fixed_and_an_encoder_has_no_cache(cases: dict[str, Any]) -> None:
    config = DecoderOnlyConfig(29, d_model=11, max_length=13, stack=Stack((Group(3, (Residual(Recurrent()),)),)))
    assert cache_bytes(config.make())["state"] == CacheBytes(per_token=0, fixed=3 * 7 * 11 * 4)
    assert cache_bytes(cases["bert"].config.make()) == {}
