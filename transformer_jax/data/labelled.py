"""Texts with a label each, or with one at every character."""

import json
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np

from transformer_jax.config import nearest
from transformer_jax.data.base import Prepared, check_context
from transformer_jax.data.lines import Examples, Lines, Row, padded
from transformer_jax.tokenize import Vocabulary


@dataclass(frozen=True)
class _WithClasses(Lines, ABC):
    _: KW_ONLY
    classes: tuple[str, ...] = ()

    form: ClassVar[str]  # of a line
    one: ClassVar[bool]  # whether a text has one label
    long: ClassVar[str]  # what happens to a text of more than `context` tokens

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"{type(self).__name__}.classes: expected each class once, received {self.classes}")

    def prepare(self, context: int) -> Prepared:
        check_context(context)
        train, held_out, digest = self.rows(self._parse)
        labels = self._labels(train, held_out)
        vocabulary = self.tokenizer.train(row.text for row in train)
        encode = vocabulary.encode_whole if self.one else vocabulary.encode
        train_ids, held_out_ids = ([encode(row.text) for row in rows] for rows in (train, held_out))
        long = sum(len(ids) > context for ids in (*train_ids, *held_out_ids))
        return Prepared(
            vocabulary=vocabulary,
            train=self._examples(train, train_ids, vocabulary, labels, context),
            held_out=self._examples(held_out, held_out_ids, vocabulary, labels, context),
            summary=f"{len(train) + len(held_out):,} texts ({len(train):,} to train on, {len(held_out):,} held out), {long:,} of them {self.long} "
            f"{context:,} tokens, {len(labels):,} classes, vocabulary of {vocabulary.vocab_size:,}",
            digest=digest,
            labels=labels,
        )

    @abstractmethod
    def _labels_of(self, content: dict[str, Any]) -> Sequence[str]:
        """The labels of a line with a text; raises a ValueError where they are none."""

    @abstractmethod
    def _examples(self, rows: Sequence[Row], ids: Sequence[np.ndarray], vocabulary: Vocabulary, labels: Sequence[str], context: int) -> Examples: ...

    def _parse(self, line: str) -> tuple[str, Sequence[str]]:
        try:
            content = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"expected {self.form}, received what is not JSON: {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"expected {self.form}, received {reprlib.repr(content)}")
        text = content.get("text")
        if not (isinstance(text, str) and text):
            raise ValueError(f"expected {self.form}, received {_shown(content, 'text')}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"expected Unicode text, received the lone surrogate {text[error.start]!r} at index {error.start}") from None
        return text, self._labels_of(content)

    def _labels(self, train: Sequence[Row], held_out: Sequence[Row]) -> tuple[str, ...]:
        """The classes by id, once all labels are known to be among them, and all of them to be trained on."""
        name, trained = type(self).__name__, {label for row in train for label in row.beside}
        labels = self.classes or tuple(sorted(trained))
        for row in (*train, *held_out):
            if unknown := set(row.beside).difference(labels):
                label = min(unknown)
                received = f"received {label!r}{nearest(label, labels)}"
                if self.classes:
                    raise ValueError(f"{row.place}: expected a label out of {name}.classes = {labels}, {received}")
                way_out = f"give more examples of it, or another {name}.held_out than {self.held_out}"
                raise ValueError(f"{row.place}, which is held out: expected a label that a line to train on has, {received}; {way_out}")
        if len(labels) < 2 and self.one:
            raise ValueError(f"{name}.files: expected lines of at least two classes, received {labels[0]!r} alone")
        for label in labels:
            if label not in trained:
                raise ValueError(f"{name}.classes: expected classes of lines to train on, received {label!r}, which none has; give more examples of it")
        return labels


@dataclass(frozen=True)
class Labelled(_WithClasses):
    """JSON lines `{"text": "...", "label": "..."}`, as examples `{"tokens": int32 [context], "label": int32 []}`. A longer text is cut at `context` tokens.

    Attributes:
        classes: the labels that there may be, by id; without any, those of the training part, sorted.

    Raises:
        ValueError: a class is named twice; and as `Lines`.
    """

    form = '{"text": "...", "label": "..."}'
    one = True
    long = "cut at"

    def _labels_of(self, content: dict[str, Any]) -> Sequence[str]:
        if not (isinstance(label := content.get("label"), str) and label):
            raise ValueError(f"expected {self.form}, received {_shown(content, 'label')}")
        return (label,)

    def _examples(self, rows: Sequence[Row], ids: Sequence[np.ndarray], vocabulary: Vocabulary, labels: Sequence[str], context: int) -> Examples:
        label = np.array([labels.index(row.beside[0]) for row in rows], np.int32)
        return Examples(tokens=padded([i[:context] for i in ids], context), label=label)


@dataclass(frozen=True)
class TokenLabelled(_WithClasses):
    """JSON lines `{"text": "...", "labels": ["...", ...]}`, one label to a character, as examples `{"tokens": int32 [context], "labels": int32 [context]}`.

    The tokenizer must make one token of each character. A longer text is several examples, which follow one another and do not overlap.

    Attributes:
        classes: the labels that there may be, by id; without any, those of the training part, sorted.

    Raises:
        ValueError: a class is named twice; and as `Lines`.
    """

    form = '{"text": "...", "labels": ["...", ...]}'
    one = False
    long = "laid in windows of"

    def _labels_of(self, content: dict[str, Any]) -> Sequence[str]:
        labels, length = content.get("labels"), len(content["text"])
        if not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
            raise ValueError(f"expected {self.form}, received {_shown(content, 'labels')}")
        if len(labels) != length:
            raise ValueError(f"expected a label for each character, received {len(labels)} for {length} characters")
        return labels

    def _examples(self, rows: Sequence[Row], ids: Sequence[np.ndarray], vocabulary: Vocabulary, labels: Sequence[str], context: int) -> Examples:
        tokens, classes = [], []
        number = {label: n for n, label in enumerate(labels)}
        for row, i in zip(rows, ids):
            if list(vocabulary.utf8(i)) != [character.encode() for character in row.text]:
                raise ValueError(
                    f"{row.place}: expected a tokenizer that makes one token of each character, received {len(i)} tokens of {len(row.text)} characters "
                    f"{reprlib.repr(row.text)}; Characters() does so for characters of the training part"
                )
            for start in range(0, len(i), context):
                tokens.append(i[start : start + context])
                classes.append(np.array([number[label] for label in row.beside[start : start + context]]))
        return Examples(tokens=padded(tokens, context), labels=padded(classes, context))


def _shown(content: dict[str, Any], name: str) -> str:
    return f"{name} = {reprlib.repr(content[name])}" if name in content else f"none of the name {name!r} among {list(content)}"
