"""Text to token ids and back, exactly: `decode(encode(text)) == text` for any Unicode text, whatever the vocabulary was trained on.

A `Tokenizer` is a config that says how to make a vocabulary; `train` makes one; a `Vocabulary` does the work. Every token of a vocabulary stands for
some UTF-8 bytes, and decoding joins those bytes: ids that a model sampled may be broken UTF-8, of which the broken parts read as U+FFFD.

A vocabulary of your own is a frozen dataclass like those below, with `vocab_size`, `encode` and `utf8`; saving and loading it come from `Config`.
"""

import codecs
import functools
import json
import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from transformer_jax.config import Config, from_json, to_json


class Tokenizer(Config, ABC):
    """How text becomes tokens: open base of the tokenizer configs."""

    @abstractmethod
    def train(self, texts: Iterable[str]) -> "Vocabulary":
        """The vocabulary of these texts, which are read once, one after the other.

        Raises:
            ValueError: a text has a lone surrogate.
        """


@dataclass(frozen=True)
class Characters(Tokenizer):
    """The characters of the training text, sorted, and 16 tokens that write all others."""

    def train(self, texts: Iterable[str]) -> "CharacterVocabulary":
        characters: set[str] = set()
        for text in texts:
            characters.update(text)
        return CharacterVocabulary("".join(sorted(characters)))


@dataclass(frozen=True)
class Bytes(Tokenizer):
    """The 256 bytes of UTF-8; nothing is trained."""

    def train(self, texts: Iterable[str]) -> "ByteVocabulary":
        return ByteVocabulary()


@dataclass(frozen=True)
class BytePairs(Tokenizer):
    """Byte-level byte pair encoding (Sennrich et al. 2016, section 3.2; on bytes: Radford et al. 2019, section 2.2).

    Attributes:
        vocab_size: tokens at most, the 256 bytes included; a short text has fewer pairs to merge.

    Raises:
        ValueError: `vocab_size` is less than 256.
    """

    vocab_size: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocab_size < 256:
            raise ValueError(f"BytePairs.vocab_size: expected at least 256, a token for each byte, received {self.vocab_size}")

    def train(self, texts: Iterable[str]) -> "BytePairVocabulary":
        library = tokenizers.Tokenizer(tokenizers.models.BPE())
        library.pre_tokenizer = ByteLevel(add_prefix_space=False)
        library.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=self.vocab_size, initial_alphabet=_ALPHABET, show_progress=False)
        library.train_from_iterator(texts, trainer)
        return BytePairVocabulary(library.to_str(pretty=True))


@dataclass(frozen=True)
class FromFile(Tokenizer):
    """A vocabulary that there is already, such as that of the run to start from.

    Attributes:
        path: of its file, `runs/.../tokenizer.json`.
    """

    path: str

    def train(self, texts: Iterable[str]) -> "Vocabulary":
        if not Path(self.path).is_file():
            raise FileNotFoundError(f"FromFile.path: expected the tokenizer.json of a run, received {self.path!r}, which does not exist")
        return load(self.path)


class Vocabulary(Config, ABC):
    """A trained tokenizer: an immutable value that is equal to any other with the same tokens."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of tokens; ids are 0 to vocab_size - 1."""

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """The ids of `text`, int32 [n].

        Raises:
            ValueError: `text` has a lone surrogate, which no UTF-8 stands for.
        """

    def encode_whole(self, text: str) -> np.ndarray:
        """The ids of a text that a model sees as a whole: those of `encode`, and what the vocabulary puts around them, such as a token that begins it."""
        return self.encode(text)

    def id_of(self, token: str) -> int | None:
        """The id of a special token, such as "[MASK]"; None where there is none of that name."""
        return None

    @abstractmethod
    def utf8(self, ids: Iterable[int]) -> Iterator[bytes]:
        """The bytes of consecutive tokens, each as soon as it is known. A byte that belongs to no text is 0xff, which UTF-8 never has.

        Raises:
            ValueError: an id is out of range.
        """

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` (an integer array [n], or integers), with U+FFFD for what is not UTF-8.

        Raises:
            ValueError: an id is out of range.
        """
        return b"".join(self.utf8(ids)).decode("utf-8", "replace")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vocabulary to `path` as one JSON file, which is never seen half written."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(self._file(), encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _file(self) -> str:
        return to_json(self)

    def _in_range(self, ids: Iterable[int]) -> Iterator[int]:
        size = self.vocab_size
        for i in map(operator.index, ids):
            if not 0 <= i < size:
                raise ValueError(f"ids: expected integers from 0 to {size - 1}, received {i}")
            yield i


def load(path: str | os.PathLike[str]) -> Vocabulary:
    """The vocabulary that `Vocabulary.save` wrote, of whichever kind; or a tokenizer.json from elsewhere.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else.
    """
    data = Path(path).read_bytes()
    try:
        text = data.decode("utf-8")
        content = json.loads(text)
        if isinstance(content, dict) and "model" in content:
            try:
                return BytePairVocabulary(text)
            except ValueError:  # one that loses something, or has special tokens, as most that were published do
                return PublishedVocabulary(text)
        return from_json(text, Vocabulary)  # type: ignore[type-abstract]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: expected a vocabulary, as Vocabulary.save writes it, received a file that is none: {error}") from None


def pieces(vocabulary: Vocabulary, ids: Iterable[int]) -> Iterator[str]:
    """Decode while the ids arrive: each piece of text as soon as its last byte is known; together they are `decode` of all ids.

    Raises:
        ValueError: an id is out of range.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for data in vocabulary.utf8(ids):
        if text := decoder.decode(data):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


@dataclass(frozen=True)
class CharacterVocabulary(Vocabulary):
    """One token per character, then 16 for the hexadecimal digits 0 to f.

    A character that has no token is written as its UTF-8 bytes, two digits each: with `characters="ab"`, "bé" (c3 a9) is 1, 2+12, 2+3, 2+10, 2+9.

    Raises:
        ValueError: `characters` is not sorted by code point, has one twice, or has a lone surrogate.
    """

    characters: str

    def __post_init__(self) -> None:
        super().__post_init__()
        _encoded("CharacterVocabulary.characters", self.characters, "utf-8")
        if list(self.characters) != sorted(set(self.characters)):
            raise ValueError(f"CharacterVocabulary.characters: expected each once, sorted by code point, received {self.characters!r}")

    @property
    def vocab_size(self) -> int:
        return len(self.characters) + 16

    @functools.cached_property
    def _codes(self) -> np.ndarray:
        return np.array([*map(ord, self.characters), 0x110000], "<u4")  # the last is past all code points, so that a search always lands on an entry

    def encode(self, text: str) -> np.ndarray:
        codes = np.frombuffer(_encoded("text", text, "utf-32-le"), "<u4")
        ids = np.searchsorted(self._codes, codes).astype(np.int32)
        unknown = self._codes[ids] != codes
        if not unknown.any():
            return ids
        data = np.frombuffer(codes[unknown].tobytes().decode("utf-32-le").encode(), np.uint8)
        utf8_length = np.searchsorted([0x80, 0x800, 0x10000], codes, side="right") + 1
        width = np.where(unknown, 2 * utf8_length, 1)
        ids = np.repeat(ids, width)
        ids[np.repeat(unknown, width)] = np.stack([data >> 4, data & 15], axis=1).ravel() + np.int32(len(self.characters))
        return ids

    def utf8(self, ids: Iterable[int]) -> Iterator[bytes]:
        table = [c.encode() for c in self.characters]
        high = None  # the first digit of a byte whose second is still to come
        for i in self._in_range(ids):
            digit = i - len(table)
            if digit < 0:
                yield table[i] if high is None else b"\xff" + table[i]
                high = None
            elif high is None:
                high = digit
            else:
                yield bytes([high << 4 | digit])
                high = None
        if high is not None:
            yield b"\xff"


@dataclass(frozen=True)
class ByteVocabulary(Vocabulary):
    """The 256 bytes of UTF-8 are the tokens."""

    @property
    def vocab_size(self) -> int:
        return 256

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(_encoded("text", text, "utf-8"), np.uint8).astype(np.int32)

    def utf8(self, ids: Iterable[int]) -> Iterator[bytes]:
        return (bytes([i]) for i in self._in_range(ids))


# tokenizer.json writes each byte as a printable character: itself where it is one, otherwise the next from U+0100 on.
_ALPHABET = sorted(ByteLevel.alphabet())
_BYTES = dict(zip(_ALPHABET, sorted(range(256), key=lambda byte: chr(byte) not in _ALPHABET)))


@dataclass(frozen=True)
class BytePairVocabulary(Vocabulary):
    """Byte-level BPE: the 256 bytes, and merges of them. Its file is a tokenizer.json of the `tokenizers` library.

    Raises:
        ValueError: `tokenizer_json` is not that of a byte-level BPE which gives back all text, or it has special tokens, which stand for no bytes.
    """

    tokenizer_json: str = field(repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        probe = " A\te\u0301\n"  # text that normalizers, prefixes and missing bytes change
        try:
            decoded = self.decode(self.encode(probe))
        except Exception as error:
            decoded = f"{type(error).__name__}: {error}"
        if decoded != probe or not _BYTES.keys() <= self._library.get_vocab().keys():
            raise ValueError(
                f"BytePairVocabulary.tokenizer_json: expected a byte-level BPE that gives text back, received one that makes {decoded!r} of {probe!r}"
            )
        if special := sorted(str(token.content) for token in self._library.get_added_tokens_decoder().values()):
            what = "expected a byte-level BPE without special tokens"
            raise ValueError(f"BytePairVocabulary.tokenizer_json: {what}, received one with {', '.join(special[:3])}; PublishedVocabulary knows of them")

    @property
    def vocab_size(self) -> int:
        return len(self._tokens)

    @functools.cached_property
    def _library(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(self.tokenizer_json)

    @functools.cached_property
    def _tokens(self) -> list[bytes]:
        tokens = {i: token for token, i in self._library.get_vocab().items()}
        return [bytes(_BYTES[c] for c in tokens[i]) for i in range(len(tokens))]

    def encode(self, text: str) -> np.ndarray:
        _encoded("text", text, "utf-8")
        return np.array(self._library.encode_batch_fast([text], add_special_tokens=False)[0].ids, np.int32)  # fast: without the offsets

    def utf8(self, ids: Iterable[int]) -> Iterator[bytes]:
        return (self._tokens[i] for i in self._in_range(ids))

    def _file(self) -> str:
        return self.tokenizer_json


@dataclass(frozen=True)
class PublishedVocabulary(Vocabulary):
    """What a tokenizer.json of the `tokenizers` library says, of whichever kind. It need not give back all text: `decode` has what the library makes of ids.

    Special tokens stand for no text. `encode_whole` puts those around a text that the file's post-processor has.

    Raises:
        ValueError: the library cannot read `tokenizer_json`.
    """

    tokenizer_json: str = field(repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self._library  # noqa: B018  # it is made here
        except Exception as error:  # the library has no class of its own for it
            expected = "expected one that the tokenizers library reads"
            raise ValueError(f"PublishedVocabulary.tokenizer_json: {expected}, received one of which it says: {error}") from None

    @functools.cached_property
    def _library(self) -> tokenizers.Tokenizer:
        library = tokenizers.Tokenizer.from_str(self.tokenizer_json)
        library.no_padding()
        library.no_truncation()
        return library

    @functools.cached_property
    def vocab_size(self) -> int:
        return max(self._library.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str) -> np.ndarray:
        _encoded("text", text, "utf-8")
        return np.array(self._library.encode(text, add_special_tokens=False).ids, np.int32)

    def id_of(self, token: str) -> int | None:
        found: int | None = self._library.token_to_id(token)
        return found

    def encode_whole(self, text: str) -> np.ndarray:
        _encoded("text", text, "utf-8")
        return np.array(self._library.encode(text, add_special_tokens=True).ids, np.int32)

    def utf8(self, ids: Iterable[int]) -> Iterator[bytes]:
        stream, seen, said = tokenizers.decoders.DecodeStream(skip_special_tokens=True), [], ""
        for i in self._in_range(ids):
            seen.append(i)
            if piece := stream.step(self._library, i):
                said += piece
                yield piece.encode()
        whole = self._library.decode(seen, skip_special_tokens=True)  # the stream holds back what may be the beginning of a character
        if whole.startswith(said):
            yield whole[len(said) :].encode()

    def _file(self) -> str:
        return self.tokenizer_json


def _encoded(name: str, text: str, encoding: str) -> bytes:
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}: expected Unicode text, received the lone surrogate {text[error.start]!r} at index {error.start}; "
            "text.encode('utf-8', 'replace').decode() replaces it"
        ) from None
