"""Decoders of many kinds, small and odd, compiled once for all tests of a worker."""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from transformer_jax.layers import (
    Alibi,
    Attention,
    Branch,
    Causal,
    Dense,
    Embedding,
    Gated,
    Group,
    LanguageModel,
    LayerNorm,
    Learned,
    Parallel,
    RelativeBias,
    Residual,
    RMSNorm,
    Rope,
    Sinusoidal,
    SlidingWindow,
    Softcap,
    Stack,
)
from transformer_jax.models import DecoderOnlyConfig

V, MAX_LENGTH = 29, 23


def _decoders() -> dict[str, DecoderOnlyConfig]:
    def config(d_model: int, *groups: Group, score: Any = (), final_norm: Any = RMSNorm(), **fields: Any) -> DecoderOnlyConfig:
        return DecoderOnlyConfig(V, d_model=d_model, max_length=MAX_LENGTH, stack=Stack(groups, final_norm=final_norm, score=score), **fields)

    heads = Attention(3, mask=Causal(), qkv_bias=True, out_bias=True)
    gpt = (Residual(heads, pre=LayerNorm()), Residual(Dense(17, bias=True), pre=LayerNorm()))

    llama = (Residual(Attention(6, mask=Causal(), num_kv_heads=2, head_dim=4, position=Rope()), pre=RMSNorm()), Residual(Gated(23), pre=RMSNorm()))

    norms = {"pre": RMSNorm(offset=1.0), "post": RMSNorm(offset=1.0)}
    wide = Attention(2, mask=Causal(), head_dim=6, num_kv_heads=1, position=Rope(100.0, fraction=0.5), score=(Softcap(3.0),), qk_norm=RMSNorm())
    gemma = (Residual(wide.replace(mask=Causal() & SlidingWindow(3)), **norms), Residual(Gated(13, activation="gelu_tanh"), **norms), Residual(wide, **norms))

    after = Residual(Attention(2, mask=Causal()), after=LayerNorm()), Residual(Dense(7, activation="relu"), after=LayerNorm())
    table = RelativeBias(6, max_distance=9)

    branches = Parallel((Branch(Attention(5, mask=Causal(), head_dim=3, score=(Alibi(),)), pre=LayerNorm()), Branch(Dense(11), pre=LayerNorm())))
    return {
        "gpt": config(21, Group(2, gpt), final_norm=LayerNorm(), embedding=Embedding(Learned())),
        "llama": config(19, Group(3, llama), head=LanguageModel(tied=False)),
        "gemma": config(19, Group(2, gemma), embedding=Embedding(scale=True), head=LanguageModel(softcap=5.0)),
        "sandwich": config(22, Group(1, after[:1]), Group(2, after), Group(1, after[1:]), score=(table,), embedding=Embedding(Sinusoidal(), norm=LayerNorm())),
        "shared": config(17, Group(3, (Residual(branches),), share=True), Group(2, (Residual(branches),), remat="everything"), head=LanguageModel(bias=True)),
    }


@pytest.fixture(scope="session")
def decoders() -> dict[str, DecoderOnlyConfig]:
    return _decoders()


@pytest.fixture(scope="session")
def built(filled: Callable[..., Any]) -> Callable[[str], SimpleNamespace]:
    """By name: `model`, random `variables`, and compiled `apply(variables, tokens, **options)` and `step(variables, tokens, cache, valid=...)`."""

    @functools.cache
    def build(name: str) -> SimpleNamespace:
        model = _decoders()[name].make()
        step = jax.jit(functools.partial(model.apply, method="step"))
        return SimpleNamespace(model=model, variables=filled(model, jnp.zeros((1, 2), jnp.int32)), apply=jax.jit(model.apply), step=step)

    return build


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", _decoders())
