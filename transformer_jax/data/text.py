"""Text files as training data: windows of tokens, drawn at random to train on and laid end to end to measure on."""

import hashlib
import pydoc_data.topics
from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np

from transformer_jax.config import Config
from transformer_jax.tokenize import Characters, Tokenizer, Vocabulary


@dataclass(frozen=True)
class Prepared:
    """Data that is ready for training.

    Attributes:
        vocabulary: what the ids mean.
        train: examples `{"tokens": int32 [context + 1]}`, of which the first `context` are inputs and the last `context` what to predict.
        held_out: the same, of text that is not in `train`.
        summary: one line on how much there is of what.
        digest: changes whenever the data does.
        labels: names of the classes, where there are any.
    """

    vocabulary: Vocabulary
    train: grain.MapDataset
    held_out: grain.MapDataset
    summary: str
    digest: str
    labels: tuple[str, ...] = ()


class Data(Config, ABC):
    """What to train on: open base of the data configs."""

    @abstractmethod
    def prepare(self, context: int) -> Prepared:
        """Read the data, as examples of `context` predictions each.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the data is not what the config says, or too little for `context`.
        """


@dataclass(frozen=True)
class Text(Data):
    """Running text. Training examples start at every token; held out ones follow one another, so that each token but the first is
    predicted once; what is left at the end and fills no window is dropped.

    Attributes:
        files: UTF-8 text files, joined in this order. Without any, the English text of Python's own help topics (`pydoc_data.topics`, 0.5 MB).
        tokenizer: trained on the training part only.
        held_out: the fraction of the characters, at the end of the text, that is not trained on.

    Raises:
        ValueError: `held_out` is not between 0 and 1.
    """

    files: tuple[str, ...] = ()
    _: KW_ONLY
    tokenizer: Tokenizer = Characters()
    held_out: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.held_out < 1:
            raise ValueError(f"Text.held_out: expected a fraction between 0 and 1, both excluded, received {self.held_out}")

    def prepare(self, context: int) -> Prepared:
        if context < 1:
            raise ValueError(f"context: expected at least 1 token, received {context}")
        text = "".join(map(_read, self.files)) if self.files else _python_help()
        if not text:
            raise ValueError(f"Text.files: expected text, received only empty files: {', '.join(self.files)}")
        cut = round(len(text) * (1 - self.held_out))
        vocabulary = self.tokenizer.train([text[:cut]])
        train, held_out = vocabulary.encode(text[:cut]), vocabulary.encode(text[cut:])
        if min(len(train), len(held_out)) <= context:
            raise ValueError(
                f"Text.files: expected at least {context + 1} tokens (context + 1) in either part, received {len(train)} to train on and {len(held_out)} "
                f"held out; give more text, a smaller context or another Text.held_out than {self.held_out}"
            )
        return Prepared(
            vocabulary=vocabulary,
            train=_Windows(train, context, stride=1),
            held_out=_Windows(held_out, context, stride=context),
            summary=f"{len(text):,} characters, {len(train) + len(held_out):,} tokens ({len(train):,} to train on, {len(held_out):,} held out), "
            f"vocabulary of {vocabulary.vocab_size:,}",
            digest=hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
        )


def batches(dataset: grain.MapDataset, *, batch: int, seed: int) -> grain.DatasetIterator:
    """Shuffled batches without end; each epoch has every example once, in an order of its own.

    Args:
        dataset: examples, trees of arrays [...].
        batch: examples in a training step.
        seed: of the order of the examples, 0 to 2**32 - 1.

    Returns:
        An iterator over trees of arrays [batch, ...]; `get_state` and `set_state` resume exactly.

    Raises:
        ValueError: `batch` is less than 1, or `seed` out of range.
    """
    if batch < 1:
        raise ValueError(f"batch: expected at least 1, received {batch}")
    steps = dataset.shuffle(seed=seed).repeat().batch(batch)
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


class _Windows(grain.MapDataset):
    """`{"tokens": tokens[i * stride : i * stride + context + 1]}` for each i at which the window is full.

    A dataset rather than a source under `grain.MapDataset.source`, whose bookkeeping takes 9 µs an element, more than all the rest of a batch.
    """

    def __init__(self, tokens: np.ndarray, context: int, stride: int) -> None:
        super().__init__()
        self._tokens, self._context, self._stride = tokens, context, stride
        self._tokens.setflags(write=False)  # elements are views

    def __len__(self) -> int:
        return (len(self._tokens) - 1 - self._context) // self._stride + 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        start = index % len(self) * self._stride
        return {"tokens": self._tokens[start : start + self._context + 1]}


def _read(file: str) -> str:
    path = Path(file)
    if not path.exists():
        raise FileNotFoundError(f"Text.files: expected UTF-8 text files, received {file!r}, which does not exist (the current folder is {Path.cwd()})")
    if path.is_dir():
        raise ValueError(f"Text.files: expected UTF-8 text files, received the folder {file!r}; name the files in it")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Text.files: expected UTF-8 text files, received {file!r}, whose byte {error.start} (0x{error.object[error.start]:02x}) is not UTF-8; "
            "convert it: iconv -f ENCODING -t UTF-8"
        ) from None


def _python_help() -> str:
    topics = pydoc_data.topics.topics
    return "\n\n".join(topics[name] for name in sorted(topics))
