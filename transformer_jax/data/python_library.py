"""Python's standard library as data: code to go on with, characters to label, passages to sort. Every Python carries it; the text differs between versions.

Files are held out whole, by the sha256 of their path. Tests, site-packages and what is generated (encodings, help topics) are left out.
"""

import hashlib
import io
import keyword
import lzma
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transformer_jax.data.base import Data, Prepared, check_context, check_held_out
from transformer_jax.data.lines import Examples, padded
from transformer_jax.data.text import Windows
from transformer_jax.tokenize import BytePairs, Characters, Tokenizer

_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "lib2to3", "encodings", "pydoc_data"}


class Source(NamedTuple):
    """A file of the library: its path below the library's folder, and its text."""

    path: str
    text: str


def library(held_out: float) -> tuple[list[Source], list[Source]]:
    """The library's files, by path: those to train on, and a fraction that is not."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for path in sorted(root.rglob("*.py")):
        below = path.relative_to(root)
        if not _LEFT_OUT & set(below.parts):
            files.append(Source(below.as_posix(), path.read_bytes().decode("utf-8", "replace")))
    ordered = sorted(files, key=lambda file: hashlib.sha256(file.path.encode()).digest())
    cut = round(len(files) * held_out)
    return sorted(ordered[cut:]), sorted(ordered[:cut])


def compressed_bits(files: Sequence[bytes]) -> tuple[float, float]:
    """Bits per byte that `xz -9e` needs: for each file alone, and for all of them in one."""

    def bits(data: bytes) -> int:
        return 8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))

    total = sum(map(len, files))
    return sum(map(bits, files)) / total, bits(b"".join(files)) / total


@dataclass(frozen=True)
class PythonSource(Data):
    """The library's code, as examples `{"tokens": int32 [context + 1]}`: windows that start at every token, or follow one another in what is held out.

    Attributes:
        tokenizer: trained on the training part only.
        held_out: the fraction of the files that is not trained on.

    Raises:
        ValueError: `held_out` is not between 0 and 1.
    """

    tokenizer: Tokenizer = BytePairs(4096)
    _: KW_ONLY
    held_out: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_held_out(self)

    def prepare(self, context: int) -> Prepared:
        check_context(context)
        train, held_out = library(self.held_out)
        vocabulary = self.tokenizer.train(file.text for file in train)
        ids = [np.concatenate([vocabulary.encode(file.text) for file in files]) for files in (train, held_out)]
        data = [file.text.encode() for file in held_out]
        alone, together = compressed_bits(data)
        return Prepared(
            vocabulary=vocabulary,
            train=Windows(ids[0], context, stride=1),
            held_out=Windows(ids[1], context, stride=context),
            summary=f"{len(train):,} files to train on ({len(ids[0]):,} tokens), {len(held_out):,} held out ({len(ids[1]):,} tokens, "
            f"{sum(map(len, data)):,} bytes, for each of which xz -9e takes {alone:.3f} bits file by file, {together:.3f} all together), "
            f"vocabulary of {vocabulary.vocab_size:,}",
            digest=_digest(train, held_out),
            bytes_per_token=sum(map(len, data)) / len(ids[1]),
        )


@dataclass(frozen=True)
class PythonTokens(Data):
    """The library's code by character, as examples `{"tokens": int32 [context], "labels": int32 [context]}`: to which kind of token each belongs.

    The kinds are those of the `tokenize` module, keywords apart from other names, and "space" for what lies between tokens. Windows follow one another.

    Attributes:
        held_out: the fraction of the files that is not trained on.

    Raises:
        ValueError: `held_out` is not between 0 and 1.
    """

    held_out: float = 0.05
    _: KW_ONLY

    def __post_init__(self) -> None:
        super().__post_init__()
        check_held_out(self)

    def prepare(self, context: int) -> Prepared:
        check_context(context)
        parts = library(self.held_out)
        labelled = [[(file.text, kind) for file in files if (kind := kinds(file.text)) is not None] for files in parts]
        vocabulary = Characters().train(text for text, _ in labelled[0])
        known = set(vocabulary.characters)
        examples = []
        for files in labelled:
            tokens: list[np.ndarray] = []
            labels: list[np.ndarray] = []
            for text, kind in files:
                # A character that the training part lacks would be several tokens: a rare one, the last, stands in for it.
                ids = vocabulary.encode("".join(c if c in known else vocabulary.characters[-1] for c in text))
                tokens += [ids[n : n + context] for n in range(0, len(ids), context)]
                labels += [kind[n : n + context] for n in range(0, len(ids), context)]
            examples.append(Examples(tokens=padded(tokens, context), labels=padded(labels, context)))
        characters = [sum(len(text) for text, _ in files) for files in labelled]
        table = trigram_errors(*labelled)
        return Prepared(
            vocabulary=vocabulary,
            train=examples[0],
            held_out=examples[1],
            summary=f"{len(labelled[0]):,} files to train on ({characters[0]:,} characters), {len(labelled[1]):,} held out ({characters[1]:,} characters, of "
            f"which a table of each trigram's most frequent kind gets {table:.2%} wrong), {len(KINDS)} kinds, vocabulary of {vocabulary.vocab_size:,}",
            digest=_digest(*parts),
            labels=KINDS,
        )


KINDS = ("comment", "keyword", "name", "newline", "number", "operator", "space", "string")


def kinds(text: str) -> np.ndarray | None:
    """The kind of token to which each character of Python code belongs, as indices into `KINDS`, int32 [n]; None where it is no Python."""
    lines = text.splitlines(keepends=True)
    starts = np.cumsum([0, *map(len, lines)])
    labels = np.full(len(text), KINDS.index("space"), np.int32)
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if (kind := _kind(token)) is not None:
                (first, column), (last, end) = token.start, token.end
                labels[starts[first - 1] + column : starts[last - 1] + end] = KINDS.index(kind)
    except (tokenize.TokenError, SyntaxError, IndexError):
        return None
    return labels


def _kind(token: tokenize.TokenInfo) -> str | None:
    name = tokenize.tok_name[token.type]
    if name == "NAME":
        return "keyword" if keyword.iskeyword(token.string) else "name"
    if name.startswith("FSTRING"):  # from Python 3.12 on, an f-string is several tokens
        return "string"
    return {"COMMENT": "comment", "NEWLINE": "newline", "NL": "newline", "NUMBER": "number", "OP": "operator", "STRING": "string"}.get(name)


def trigram_errors(train: Sequence[tuple[str, np.ndarray]], held_out: Sequence[tuple[str, np.ndarray]]) -> float:
    """The share of characters whose kind a table gets wrong that knows each trigram's most frequent kind, of the character in its middle."""
    trigrams = [np.concatenate([_trigrams(text) for text, _ in part]) for part in (train, held_out)]
    labels = [np.concatenate([kind for _, kind in part]) for part in (train, held_out)]
    known, places = np.unique(trigrams[0], return_inverse=True)
    counts = np.bincount(places * len(KINDS) + labels[0], minlength=len(known) * len(KINDS)).reshape(-1, len(KINDS))
    at = np.minimum(np.searchsorted(known, trigrams[1]), len(known) - 1)
    guesses = np.where(known[at] == trigrams[1], counts.argmax(1)[at], counts.sum(0).argmax())
    return float((guesses != labels[1]).mean())


def _trigrams(text: str) -> np.ndarray:
    """A number for each character and its two neighbours, int64 [n]."""
    codes = np.frombuffer(f"\n{text}\n".encode("utf-32-le", "surrogatepass"), "<u4").astype(np.int64)
    return (codes[:-2] << 42) | (codes[1:-1] << 21) | codes[2:]


@dataclass(frozen=True)
class PythonPackages(Data):
    """Passages of the library's largest packages, as examples `{"tokens": int32 [context], "label": int32 []}`: which package it is from.

    Attributes:
        packages: how many.
        tokenizer: trained on all of the training part.
        held_out: the fraction of the files that is not trained on.
        labelled: passages of each package to train on; 0 for all of them. Fewer tell how much a model knew before.

    Raises:
        ValueError: fewer than 2 packages, or more than there are; `labelled` below 0; `held_out` is not between 0 and 1.
    """

    packages: int = 20
    _: KW_ONLY
    tokenizer: Tokenizer = BytePairs(2048)
    held_out: float = 0.2
    labelled: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_held_out(self)
        if self.packages < 2:
            raise ValueError(f"PythonPackages.packages: expected at least 2, received {self.packages}")
        if self.labelled < 0:
            raise ValueError(f"PythonPackages.labelled: expected at least 0, received {self.labelled}")

    def prepare(self, context: int) -> Prepared:
        check_context(context)
        train, held_out = library(self.held_out)
        sizes: Counter[str] = Counter()
        for part in (train, held_out):
            names = {package for file in part if (package := _package(file))}
            for file in part:
                sizes[_package(file)] += len(file.text)
            for name in set(sizes) - names:  # on both sides, or not at all
                del sizes[name]
        labels = tuple(sorted(name for name, _ in sizes.most_common(self.packages)))
        if len(labels) < self.packages:
            raise ValueError(f"PythonPackages.packages: expected at most {len(labels)}, which this Python's library has, received {self.packages}")
        vocabulary = self.tokenizer.train(file.text for file in train)
        parts = []
        for files, most in ((train, self.labelled), (held_out, 0)):
            passages: dict[str, list[np.ndarray]] = {label: [] for label in labels}
            for file in files:
                if (package := _package(file)) in passages:
                    ids = vocabulary.encode(file.text)
                    passages[package] += [ids[n : n + context] for n in range(0, max(len(ids) - context // 2, 1), context)]
            chosen = {label: _spread(found, most) for label, found in passages.items()}
            tokens = padded([ids for found in chosen.values() for ids in found], context)
            label = np.repeat(np.arange(len(labels), dtype=np.int32), [len(found) for found in chosen.values()])
            parts.append(Examples(tokens=tokens, label=label))
        return Prepared(
            vocabulary=vocabulary,
            train=parts[0],
            held_out=parts[1],
            summary=f"{len(parts[0]):,} passages to train on, {len(parts[1]):,} of other files held out, {len(labels)} packages, "
            f"vocabulary of {vocabulary.vocab_size:,}",
            digest=_digest(train, held_out),
            labels=labels,
        )


def _package(file: Source) -> str:
    package, slash, _ = file.path.partition("/")
    return package if slash else ""


def _spread(items: list[np.ndarray], most: int) -> list[np.ndarray]:
    """`most` of the items, from all over; 0 for all."""
    return items if not most or len(items) <= most else [items[n] for n in np.linspace(0, len(items) - 1, most).astype(int)]


def _digest(*parts: Sequence[Source]) -> str:
    digest = hashlib.sha256()
    for files in parts:
        for file in files:
            digest.update(f"{file.path}\0{len(file.text)}\0{file.text}".encode())
    return digest.hexdigest()
