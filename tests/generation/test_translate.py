"""Generation by an encoder-decoder, against the full forward pass repeated token by token."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import generate, stream, unstacked
from transformer_jax.generation import Sampling
from transformer_jax.layers import Attention, Causal, CrossAttention, Dense, Embedding, Group, LanguageModel, Learned, NoMask, Residual, RMSNorm, Stack
from transformer_jax.models import EncoderDecoderConfig

B, S, V, LONGEST = 3, 7, 17, 9
SOURCE = np.random.default_rng(0).integers(0, V, (B, S))
VALID = np.arange(S) >= np.array([[0], [2], [5]])


@pytest.fixture(scope="module")
def translator(filled: Any) -> tuple[Any, Any]:
    jax.config.update("jax_disable_most_optimizations", True)
    mlp = Residual(Dense(11), pre=RMSNorm())
    encoder = Stack((Group(1, (Residual(Attention(2, mask=NoMask()), pre=RMSNorm()), mlp)),))
    decoder = Stack((Group(2, (Residual(Attention(2, mask=Causal()), pre=RMSNorm()), Residual(CrossAttention(4), pre=RMSNorm()), mlp)),), final_norm=RMSNorm())
    table = Embedding(Learned())
    config = EncoderDecoderConfig(
        V, d_model=12, max_length=LONGEST, encoder=encoder, decoder=decoder, source_embedding=table, target_embedding=table, head=LanguageModel(tied=False)
    )  # fmt: skip
    model = config.make()
    yield unstacked(model, filled(model, *config.example()))
    jax.config.update("jax_disable_most_optimizations", False)


def test_greedy_text_is_that_of_the_whole_model_token_by_token(translator: Any) -> None:
    model, variables = translator
    begin, apply = jnp.full((B, 1), V - 1, jnp.int32), jax.jit(model.apply)
    new = generate(model, variables, begin, LONGEST, sampling=Sampling(0.0), source=SOURCE, source_valid=VALID)
    text = np.full((B, LONGEST), 0)
    text[:, 0] = V - 1
    for n in range(LONGEST):
        logits = apply(variables, SOURCE, text, source_valid=VALID)
        np.testing.assert_array_equal(new[:, n], logits[:, n].argmax(-1))
        if n + 1 < LONGEST:
            text[:, n + 1] = new[:, n]
    assert len(np.unique(new)) > 2
    each = stream(model, variables, begin, LONGEST, sampling=Sampling(0.0), source=SOURCE, source_valid=VALID)
    np.testing.assert_array_equal(np.stack(list(each), 1), new)


def test_a_text_longer_than_the_model_goes_on_with_the_same_source(translator: Any) -> None:
    model, variables = translator
    begin, how = jnp.full((B, 1), V - 1, jnp.int32), {"sampling": Sampling(0.0), "source": SOURCE}
    new = generate(model, variables, begin, 2 * LONGEST + 3, **how)
    np.testing.assert_array_equal(np.stack(list(stream(model, variables, begin, 2 * LONGEST + 3, **how)), 1), new)


@pytest.mark.parametrize(
    ("source", "message"),
    [(None, r"source: expected integers \[B, S\] for an encoder-decoder, received None"), (SOURCE[:2], r"source: expected a row for each of the 3 prompts")],
)
def test_a_source_that_is_missing_or_does_not_fit_is_refused(translator: Any, source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(*translator, jnp.zeros((B, 1), jnp.int32), 3, sampling=Sampling(0.0), source=source)
