"""Six models of all shapes at sizes where activations dominate, and what XLA makes of them."""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import pytest

from transformer_jax.layers import (
    Attention,
    Causal,
    CrossAttention,
    Dense,
    Embedding,
    FirstToken,
    Gated,
    Group,
    LanguageModel,
    Layer,
    LayerNorm,
    Learned,
    NoMask,
    RelativeBias,
    Residual,
    RMSNorm,
    Rope,
    SequenceClassifier,
    Stack,
)
from transformer_jax.models import DecoderOnlyConfig, EncoderDecoderConfig, EncoderOnlyConfig, ModelConfig
from transformer_jax.training import MaskedTokens, NextToken, Objective, SequenceLabels, SourceToTarget

BATCH, LENGTH, D_MODEL, VOCABULARY = 8, 128, 64, 101


class Case(NamedTuple):
    config: ModelConfig
    objective: Objective


def _cases() -> dict[str, Case]:
    sizes: Any = {"d_model": D_MODEL, "max_length": LENGTH}

    def pre(*layers: Layer) -> tuple[Residual, ...]:
        return tuple(Residual(layer, pre=RMSNorm()) for layer in layers)

    def stack(group: Group, **fields: Any) -> Stack:
        return Stack((group,), final_norm=RMSNorm(), **fields)

    mlp = Dense(4 * D_MODEL, bias=True)
    gpt = (Residual(Attention(4, mask=Causal(), qkv_bias=True, out_bias=True), pre=LayerNorm()), Residual(mlp, pre=LayerNorm()))
    llama = pre(Attention(8, mask=Causal(), num_kv_heads=2, position=Rope()), Gated(167))
    bert = tuple(Residual(layer, after=LayerNorm()) for layer in (Attention(4, mask=NoMask(), qkv_bias=True, out_bias=True), mlp))
    t5 = pre(Attention(4, mask=NoMask()), Dense(4 * D_MODEL)), pre(Attention(4, mask=Causal()), CrossAttention(4), Dense(4 * D_MODEL))
    encoder, decoder = (stack(Group(3, layers), score=(RelativeBias(bidirectional=n == 0),)) for n, layers in enumerate(t5))
    bert_embedding = Embedding(Learned(), norm=LayerNorm())
    albert = EncoderOnlyConfig(
        VOCABULARY, stack=Stack((Group(4, bert, share=True),)), embedding=bert_embedding, head=SequenceClassifier(7, pool=FirstToken()), **sizes
    )
    return {
        "gpt": Case(DecoderOnlyConfig(VOCABULARY, stack=stack(Group(4, gpt)), embedding=Embedding(Learned()), **sizes), NextToken()),
        "remat": Case(DecoderOnlyConfig(VOCABULARY, stack=stack(Group(4, gpt, remat="everything")), **sizes), NextToken()),
        # Its loss is in three chunks.
        "vocabulary": Case(DecoderOnlyConfig(10007, stack=stack(Group(2, llama)), head=LanguageModel(tied=False), **sizes), NextToken()),
        "bert": Case(EncoderOnlyConfig(VOCABULARY, stack=Stack((Group(4, bert),)), embedding=bert_embedding, **sizes), MaskedTokens()),
        "albert": Case(albert, SequenceLabels()),
        "t5": Case(EncoderDecoderConfig(VOCABULARY, encoder=encoder, decoder=decoder, **sizes), SourceToTarget()),
    }


@pytest.fixture(scope="session")
def cases() -> dict[str, Case]:
    return _cases()


@pytest.fixture(scope="session")
def program() -> Callable[..., Any]:
    """`program(name, "forward" | "training", backend)`: the function, its arguments in shapes, and the same compiled by XLA."""

    @functools.cache
    def build(name: str, kind: str, backend: str) -> SimpleNamespace:
        config, objective = _cases()[name]
        model = config.make(backend=backend)
        inputs, batch = jax.eval_shape(lambda: (config.example(BATCH, LENGTH), objective.example(BATCH, LENGTH)))
        variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)

        def loss(variables: Any, batch: Any) -> Any:
            return objective(model, variables, batch).total

        fn, args = (model.apply, (variables, *inputs)) if kind == "forward" else (jax.value_and_grad(loss), (variables, batch))
        return SimpleNamespace(fn=fn, args=args, compiled=jax.jit(fn).lower(*args).compile())

    return build


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        # All six in CI; by default the plainest.
        metafunc.parametrize("name", [name if name == "gpt" else pytest.param(name, marks=pytest.mark.slow) for name in _cases()])
