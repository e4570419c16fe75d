"""The tokens of a text larger than memory: written to a file once, and mapped into memory ever after."""

import errno
import hashlib
import json
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rich.console
import rich.progress

from transformer_jax.config import to_json
from transformer_jax.tokenize import Tokenizer, Vocabulary, load


class Tokens(NamedTuple):
    """A text as tokens, in two parts.

    Attributes:
        vocabulary: trained on the first part.
        train, held_out: the parts, integers [n].
        characters: of both.
        digest: sha256 of the text in UTF-8.
    """

    vocabulary: Vocabulary
    train: np.ndarray
    held_out: np.ndarray
    characters: int
    digest: str


def split(characters: int, held_out: float) -> int:
    """How many of the characters are trained on."""
    return round(characters * (1 - held_out))


def cached_tokens(cache: Path, blocks: Callable[[], Iterable[str]], *, tokenizer: Tokenizer, held_out: float) -> Tokens:
    """The tokens of a text, from a folder in `cache`, which is made if no text with this content, tokenizer and fraction has been there before.

    Args:
        cache: a folder.
        blocks: starts the text anew, in blocks that fit into memory. It is read once to know it, and twice more to make the folder.
        tokenizer: of which a vocabulary is trained.
        held_out: the fraction of the characters at the end that is the second part.

    Returns:
        Tokens whose arrays are read from disk as they are used: uint16 where that holds the vocabulary, otherwise int32.

    Raises:
        OSError: the folder cannot be written; nothing is left of it then.
        ValueError: its files are not those that were written.
    """
    if cache.exists() and not cache.is_dir():
        raise ValueError(f"cache: expected a folder, or a name for one, received the file {str(cache)!r}")
    content, characters = hashlib.sha256(), 0
    for block in _shown(blocks(), "reading the text", None):
        content.update(block.encode())
        characters += len(block)
    digest = content.hexdigest()
    folder = cache / hashlib.sha256(json.dumps([digest, to_json(tokenizer), held_out]).encode()).hexdigest()[:32]
    if not folder.exists():
        _make(folder, blocks, tokenizer, characters, split(characters, held_out))
    try:
        vocabulary = load(folder / "tokenizer.json")
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        tokens = np.asarray(np.memmap(folder / "tokens.bin", _dtype(vocabulary), "r", shape=(about["train"] + about["held_out"],)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}: expected the tokens that were written there, received files that cannot be read: {error}; remove the folder") from None
    return Tokens(vocabulary, tokens[: about["train"]], tokens[about["train"] :], characters, digest)


def _make(folder: Path, blocks: Callable[[], Iterable[str]], tokenizer: Tokenizer, characters: int, cut: int) -> None:
    """Writes the folder aside and renames it, so that nobody sees half of it."""
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    aside.mkdir(parents=True)
    try:
        vocabulary = tokenizer.train(part for part, train in _parts(_shown(blocks(), "training the tokenizer", characters), cut) if train)
        vocabulary.save(aside / "tokenizer.json")
        counts = {True: 0, False: 0}
        with (aside / "tokens.bin").open("wb") as file:
            for part, train in _parts(_shown(blocks(), "writing the tokens", characters), cut):
                ids = vocabulary.encode(part).astype(_dtype(vocabulary))
                file.write(ids.tobytes())
                counts[train] += len(ids)
        (aside / "about.json").write_text(json.dumps({"train": counts[True], "held_out": counts[False]}), encoding="utf-8")
        try:
            aside.rename(folder)
        except OSError:
            if not folder.exists():  # otherwise another process has made the same meanwhile
                raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        way_out = f"could not be written ({error.strerror}); make room, or give a folder on another disk"
        raise OSError(error.errno, way_out, str(folder)) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _dtype(vocabulary: Vocabulary) -> type[np.integer]:
    return np.uint16 if vocabulary.vocab_size <= 2**16 else np.int32


def _parts(blocks: Iterable[str], cut: int) -> Iterator[tuple[str, bool]]:
    """The same text, each piece with whether it belongs to the first `cut` characters. Pieces may be empty."""
    for block in blocks:
        yield block[:cut], True
        yield block[cut:], False
        cut = max(cut - len(block), 0)


def _shown(blocks: Iterable[str], what: str, characters: int | None) -> Iterator[str]:
    """The same blocks, with a bar on a terminal."""
    console = rich.console.Console(file=sys.stdout)
    with rich.progress.Progress(*rich.progress.Progress.get_default_columns(), console=console, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task(what, total=characters)
        for block in blocks:
            yield block
            bar.advance(task, len(block))
