"""What a trained model makes of a few examples, as text to look at."""

import itertools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.data import Prepared
from transformer_jax.generation import Sampling, generate
from transformer_jax.tokenize import Vocabulary


def continued(model: Any, variables: Any, vocabulary: Vocabulary, prompt: str, count: int, sampling: Sampling, key: jax.Array) -> str:
    """The prompt and `count` tokens after it; a word of it where the vocabulary, a published one, makes no tokens of the prompt."""
    tokens = jnp.asarray(vocabulary.encode(prompt)[None, -model.config.max_length :])
    if not tokens.size:
        return f"(no sample: the tokenizer makes no tokens of the prompt {prompt!r}; give another by --run.prompt)"
    return prompt + text_of(vocabulary, generate(model, variables, tokens, count, key=key, sampling=sampling)[0])


def translated(model: Any, variables: Any, sources: Any, *, begin: int, end: int, length: int) -> np.ndarray:
    """The likeliest target of each source `[B, S]`, token by token, int32 `[B, length]`, -1 from the end token on."""
    first = jnp.full((len(sources), 1), begin, jnp.int32)
    how = {"sampling": Sampling(0.0), "stop": end, "source": jnp.maximum(sources, 0), "source_valid": sources >= 0}
    made = np.asarray(generate(model, variables, first, length, **how))
    return np.where(np.logical_or.accumulate(made == end, 1), -1, made)


def text_of(vocabulary: Vocabulary, tokens: Iterable[int]) -> str:
    """The tokens' text, without padding and without tokens that stand for none."""
    return vocabulary.decode(int(t) for t in tokens if 0 <= t < vocabulary.vocab_size)


def first_examples(data: Prepared, count: int) -> dict[str, np.ndarray]:
    """A batch of held-out examples, from all over what is held out."""
    places = np.linspace(0, len(data.held_out) - 1, min(count, len(data.held_out))).astype(int)
    batch: dict[str, np.ndarray] = jax.tree.map(lambda *a: np.stack(a), *[data.held_out[int(n)] for n in places])
    return batch


def runs(items: Iterable[tuple[Any, Any]]) -> Iterable[tuple[Any, list[Any]]]:
    """Runs of items with the same first part."""
    for key, run in itertools.groupby(items, key=lambda pair: pair[0]):
        yield key, [item for _, item in run]
