"""Six kinds of decoder at sizes where activations dominate, and what XLA makes of them."""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from transformer_jax.layers import (
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
    Residual,
    RMSNorm,
    Rope,
    Stack,
)
from transformer_jax.models import DecoderOnlyConfig
from transformer_jax.training import NextToken

BATCH, LENGTH, D_MODEL, VOCABULARY = 8, 128, 64, 101


def _models() -> dict[str, DecoderOnlyConfig]:
    def config(*groups: Group, vocab_size: int = VOCABULARY, **fields: Any) -> DecoderOnlyConfig:
        return DecoderOnlyConfig(vocab_size, d_model=D_MODEL, max_length=LENGTH, stack=Stack(groups, final_norm=LayerNorm()), **fields)

    heads, mlp = Attention(4, mask=Causal(), qkv_bias=True, out_bias=True), Dense(4 * D_MODEL, bias=True)
    gpt = (Residual(heads, pre=LayerNorm()), Residual(mlp, pre=LayerNorm()))
    llama = (Residual(Attention(8, mask=Causal(), num_kv_heads=2, position=Rope()), pre=RMSNorm()), Residual(Gated(167), pre=RMSNorm()))
    branches = Parallel((Branch(Attention(4, mask=Causal()), pre=LayerNorm()), Branch(Dense(4 * D_MODEL), pre=LayerNorm())))
    return {
        "gpt": config(Group(4, gpt), embedding=Embedding(Learned())),
        "llama": config(Group(4, llama)),
        "shared": config(Group(4, gpt, share=True)),
        "parallel": config(Group(2, gpt), Group(3, (Residual(branches),))),
        "remat": config(Group(4, gpt, remat="everything")),
        "vocabulary": config(Group(2, llama), vocab_size=10007, head=LanguageModel(tied=False)),  # its loss is in three chunks
    }


@pytest.fixture(scope="session")
def models() -> dict[str, DecoderOnlyConfig]:
    return _models()


@pytest.fixture(scope="session")
def program() -> Callable[..., Any]:
    """`program(name, "forward" | "training", backend)`: the function, its arguments in shapes, and the same compiled by XLA."""

    @functools.cache
    def build(name: str, kind: str, backend: str) -> SimpleNamespace:
        model = _models()[name].make(backend=backend)
        inputs, examples = (jax.ShapeDtypeStruct((BATCH, n), jnp.int32) for n in (LENGTH, LENGTH + 1))
        variables = jax.eval_shape(model.init, jax.random.key(0), inputs)

        def loss(variables: Any, tokens: Any) -> Any:
            return NextToken()(model, variables, {"tokens": tokens}).total

        fn, args = (model.apply, (variables, inputs)) if kind == "forward" else (jax.value_and_grad(loss), (variables, examples))
        return SimpleNamespace(fn=fn, args=args, compiled=jax.jit(fn).lower(*args).compile())

    return build


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", _models())
