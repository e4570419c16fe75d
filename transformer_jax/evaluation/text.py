"""How well a language model predicts running text."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, cast

import jax
import numpy as np

from pallas_kernels.loss import CrossEntropy, linear_cross_entropy
from transformer_jax.tokenize import Vocabulary
from transformer_jax.training.held_out import Sums, added_up
from transformer_jax.typing import Array, Tokens


def sliding_loss(model: Any, variables: Any, tokens: np.ndarray, *, stride: int, batch: int, length: int | None = None) -> Sums:
    """Sums over all tokens but the first, each predicted once, in a window that moves over the text.

    A window is `length` tokens that predict those after them, of which it counts what no earlier one has: with a stride of `length` all, otherwise the
    last `stride`, given at least length - stride + 1 tokens each. The last window ends where the text does.

    Args:
        model: decoder-only, in either layout.
        variables: `{"params": ...}`.
        tokens: integers `[n]`.
        stride: tokens from one window to the next; less is slower, and gives each token more to go by.
        batch: windows at a time.
        length: of a window; the model's max_length unless given.

    Raises:
        ValueError: a stride out of range, or fewer than 2 tokens.
    """
    longest = length or model.config.max_length
    if not 1 <= stride <= longest:
        raise ValueError(f"stride: expected 1 to {longest} tokens (the length of a window), received {stride}")
    if len(tokens) < 2:
        raise ValueError(f"tokens: expected at least 2, received {len(tokens)}")
    windows = _windows(np.asarray(tokens), min(longest, len(tokens) - 1), stride, batch)
    return added_up(_sums(model, variables, inputs, labels) for inputs, labels in windows)


def _windows(tokens: np.ndarray, length: int, stride: int, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    last = len(tokens) - 1 - length
    starts = np.append(np.arange(0, last, stride), last)
    batch = min(batch, len(starts))
    starts = np.append(starts, np.full(-len(starts) % batch, last))  # repeated, a window has nothing left to count
    counted = np.append(0, starts[:-1] + length)
    for n in range(0, len(starts), batch):
        places = starts[n : n + batch, None] + np.arange(length)
        inputs, labels = (tokens[at].astype(np.int32) for at in (places, places + 1))  # a file has them in 16 bits, without a sign
        yield inputs, np.where(places >= counted[n : n + batch, None], labels, -1)


@partial(jax.jit, static_argnums=0)
def _sums(model: Any, variables: Any, inputs: Tokens, labels: Array) -> CrossEntropy:
    x, head = cast(Any, model.apply(variables, inputs, method="prelogits"))
    return linear_cross_entropy(x.reshape(-1, x.shape[-1]), head.kernel, labels.reshape(-1), bias=head.bias, softcap=head.softcap)


def utf8_length(vocabulary: Vocabulary, tokens: Iterable[int]) -> int:
    """The bytes that tokens stand for; padding, and tokens beyond the vocabulary, for none."""
    size = vocabulary.vocab_size
    return sum(map(len, vocabulary.utf8(t for t in tokens if 0 <= t < size)))
