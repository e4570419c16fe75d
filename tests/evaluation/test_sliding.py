"""The loss of running text, against one forward pass a token."""

from typing import Any

import jax
import numpy as np
import pytest

from transformer_jax.evaluation import sliding_loss
from transformer_jax.evaluation.text import utf8_length
from transformer_jax.layers import Attention, Causal, Dense, Group, LanguageModel, Residual, RMSNorm, Rope, Stack
from transformer_jax.models import DecoderOnlyConfig
from transformer_jax.tokenize import Bytes, CharacterVocabulary
from transformer_jax.training import NextToken

V, LENGTH = 13, 7
pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def trained(filled: Any) -> tuple[Any, Any]:
    layer = Residual(Attention(2, mask=Causal(), position=Rope()), pre=RMSNorm()), Residual(Dense(11))
    config = DecoderOnlyConfig(V, d_model=8, max_length=LENGTH, stack=Stack((Group(1, layer),)), head=LanguageModel(softcap=4.0, bias=True))
    model = config.make()
    return model, filled(model, *config.example())


def text(length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(0, V, length).astype(np.int32)


def one_by_one(model: Any, variables: Any, tokens: np.ndarray, stride: int) -> tuple[float, int]:
    """Each token's loss from a pass of its own over its window's tokens before it: those from the first multiple of the stride that leaves it in reach."""
    apply, nll, correct = jax.jit(model.apply), 0.0, 0
    last = max(0, len(tokens) - 1 - LENGTH)
    for place in range(1, len(tokens)):
        start = min(last, -(-max(0, place - LENGTH) // stride) * stride)
        before = tokens[start:place]
        assert len(before) >= min(place, LENGTH - stride + 1)
        padded = np.append(before, np.zeros(LENGTH - len(before), np.int32))  # causal: what follows is not seen
        logits = np.asarray(apply(variables, padded[None])[0, len(before) - 1], np.float64)
        nll += np.log(np.exp(logits).sum()) - logits[tokens[place]]
        correct += int(logits.argmax() == tokens[place])
    return nll, correct


@pytest.mark.parametrize(("length", "stride", "batch"), [(23, 1, 5), (23, 3, 2), (24, 5, 100), (22, 7, 2), (8, 2, 3), (5, 4, 3), (2, 1, 1)])
def test_each_token_is_predicted_once_in_its_window(trained: tuple[Any, Any], length: int, stride: int, batch: int) -> None:
    tokens = text(length)
    sums = sliding_loss(*trained, tokens, stride=stride, batch=batch)
    nll, correct = one_by_one(*trained, tokens, stride)
    np.testing.assert_allclose(sums.nll, nll, rtol=1e-5)
    assert (sums.correct, sums.weight) == (correct, length - 1)


def test_with_the_longest_stride_it_is_the_objectives_loss_of_the_windows_end_to_end(trained: tuple[Any, Any]) -> None:
    tokens = text(4 * LENGTH + 1)
    windows = np.stack([tokens[n : n + LENGTH + 1] for n in range(0, 4 * LENGTH, LENGTH)])
    expected, sums = NextToken(0.1)(*trained, {"tokens": windows}), sliding_loss(*trained, tokens, stride=LENGTH, batch=3)
    np.testing.assert_allclose([sums.nll, sums.correct, sums.weight], [expected.nll, expected.correct, expected.weight], rtol=1e-6)


def test_tokens_of_a_file_without_a_sign_are_as_good(trained: tuple[Any, Any]) -> None:
    assert sliding_loss(*trained, text(22).astype(np.uint16), stride=3, batch=4) == sliding_loss(*trained, text(22), stride=3, batch=4)


def test_strides_out_of_range_and_too_short_a_text_are_refused(trained: tuple[Any, Any]) -> None:
    for stride in (0, -1, LENGTH + 1):
        with pytest.raises(ValueError, match=rf"stride: expected 1 to 7 tokens \(the length of a window\), received {stride}"):
            sliding_loss(*trained, text(20), stride=stride, batch=2)
    with pytest.raises(ValueError, match="tokens: expected at least 2, received 1"):
        sliding_loss(*trained, text(1), stride=1, batch=2)


def test_bytes_are_those_of_the_text_and_padding_has_none() -> None:
    vocabulary = CharacterVocabulary("abé")
    tokens = vocabulary.encode("abé漢a")
    assert len(tokens) == 4 + 6
    assert utf8_length(vocabulary, [-1, *tokens, vocabulary.vocab_size, -7]) == len("abé漢a".encode()) == 8
    assert utf8_length(Bytes().train([]), []) == 0
