"""Text files as training data: windows of tokens, drawn at random to train on and laid end to end to measure on."""

import hashlib
import pydoc_data.topics
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np

from transformer_jax.data.base import Data, Prepared, bytes_per_token, check_context, check_held_out
from transformer_jax.data.files import read_blocks
from transformer_jax.data.token_file import Tokens, cached_tokens, split
from transformer_jax.tokenize import Characters, Tokenizer


@dataclass(frozen=True)
class Text(Data):
    """Running text, as examples `{"tokens": int32 [context + 1]}`, of which the first `context` are inputs and the last `context` what to predict.

    Training examples start at every token; held out ones follow one another, so that each token but the first is predicted once; what is left at the end
    and fills no window is dropped.

    Attributes:
        files: UTF-8 text files, joined in this order. Without any, the English text of Python's own help topics (`pydoc_data.topics`, 0.5 MB).
        tokenizer: trained on the training part only.
        held_out: the fraction of the characters, at the end of the text, that is not trained on.
        cache: for text larger than memory: a folder where the tokens are kept, in files that are made when a text, tokenizer or fraction is new there, and
            found again by what the text files hold. The examples are the same as without, but where byte pairs would reach across the end of a block of
            0.25 MB that has no white space.

    Raises:
        ValueError: `held_out` is not between 0 and 1.
    """

    files: tuple[str, ...] = ()
    _: KW_ONLY
    tokenizer: Tokenizer = Characters()
    held_out: float = 0.1
    cache: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_held_out(self)

    def prepare(self, context: int) -> Prepared:
        check_context(context)
        if not any(self._blocks()):
            raise ValueError(f"Text.files: expected text, received only empty files: {', '.join(self.files)}")
        if self.cache:
            tokens = cached_tokens(Path(self.cache), self._blocks, tokenizer=self.tokenizer, held_out=self.held_out)
        else:
            tokens = self._tokens("".join(self._blocks()))
        vocabulary, train, held_out, characters, digest = tokens
        if min(len(train), len(held_out)) <= context:
            raise ValueError(
                f"Text.files: expected at least {context + 1} tokens (context + 1) in either part, received {len(train)} to train on and {len(held_out)} "
                f"held out; give more text, a smaller context or another Text.held_out than {self.held_out}"
            )
        return Prepared(
            vocabulary=vocabulary,
            train=Windows(train, context, stride=1),
            held_out=Windows(held_out, context, stride=context),
            summary=f"{characters:,} characters, {len(train) + len(held_out):,} tokens ({len(train):,} to train on, {len(held_out):,} held out), "
            f"vocabulary of {vocabulary.vocab_size:,}",
            digest=digest,
            bytes_per_token=bytes_per_token(vocabulary, held_out),
        )

    def _blocks(self) -> Iterator[str]:
        if not self.files:
            yield _python_help()
        for file in self.files:
            yield from read_blocks(file, field="Text.files")

    def _tokens(self, text: str) -> Tokens:
        cut = split(len(text), self.held_out)
        vocabulary = self.tokenizer.train([text[:cut]])
        digest = hashlib.sha256(text.encode()).hexdigest()
        return Tokens(vocabulary, vocabulary.encode(text[:cut]), vocabulary.encode(text[cut:]), len(text), digest)


class Windows(grain.MapDataset):
    """`{"tokens": tokens[i * stride : i * stride + context + 1]}` for each i at which the window is full.

    A dataset rather than a source under `grain.MapDataset.source`, whose bookkeeping takes 9 µs an element, more than all the rest of a batch.
    """

    def __init__(self, tokens: np.ndarray, context: int, stride: int) -> None:
        super().__init__()
        self.tokens, self._context, self._stride = tokens, context, stride
        self.tokens.setflags(write=False)  # elements are views, but of tokens that a file holds in 16 bits

    def __len__(self) -> int:
        return (len(self.tokens) - 1 - self._context) // self._stride + 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        start = index % len(self) * self._stride
        return {"tokens": self.tokens[start : start + self._context + 1].astype(np.int32, copy=False)}


def _python_help() -> str:
    topics = pydoc_data.topics.topics
    return "\n\n".join(topics[name] for name in sorted(topics))
