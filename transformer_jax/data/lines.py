"""Files with an example to a line."""

import hashlib
import io
from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import grain
import numpy as np

from transformer_jax.data.base import Data, check_held_out
from transformer_jax.data.files import read
from transformer_jax.tokenize import Characters, Tokenizer


class Row(NamedTuple):
    """What a line says: a text and what goes with it, and where that is, for messages."""

    text: str
    beside: Any
    place: str


class Rows(NamedTuple):
    """All lines of some files.

    Attributes:
        train, held_out: rows with different texts, each in the order of the files.
        digest: changes whenever a line does.
    """

    train: list[Row]
    held_out: list[Row]
    digest: str


@dataclass(frozen=True)
class Lines(Data, ABC):
    """UTF-8 files with an example to a line: open base.

    Which examples are held out is decided by their texts, and so not by their order: of the different texts, sorted by sha256, the first `held_out` of all.
    Equal texts are on the same side.

    Attributes:
        files: at least one. A line ends in \\n or \\r\\n.
        tokenizer: trained on the training part only.
        held_out: the fraction of the different texts that is not trained on.

    Raises:
        ValueError: there are no files, or `held_out` is not between 0 and 1.
    """

    files: tuple[str, ...]
    _: KW_ONLY
    tokenizer: Tokenizer = Characters()
    held_out: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_held_out(self)
        if not self.files:
            raise ValueError(f"{type(self).__name__}.files: expected at least one file, received none")

    def rows(self, parse: Callable[[str], tuple[str, Any]]) -> Rows:
        """The lines of all files.

        Args:
            parse: makes of a line its text and what goes with it, or raises a ValueError that says what it expected and received.
        """
        field = f"{type(self).__name__}.files"
        digest, rows = hashlib.sha256(), []
        for file in self.files:
            for number, line in enumerate(io.StringIO(read(file, field=field), newline="\n"), 1):
                line = line.rstrip("\r\n")
                digest.update(f"{line}\n".encode())
                place = f"{field}: {file}, line {number}"
                try:
                    rows.append(Row(*parse(line), place))
                except ValueError as error:
                    raise ValueError(f"{place}: {error}") from None
        if not rows:
            raise ValueError(f"{field}: expected an example to a line, received only empty files: {', '.join(self.files)}")
        texts = sorted({row.text for row in rows}, key=lambda text: hashlib.sha256(text.encode()).digest())
        held_out = set(texts[: round(len(texts) * self.held_out)])
        if len(held_out) in (0, len(texts)):
            raise ValueError(
                f"{field}: expected enough different texts to train on some and hold out others, received {len(texts)}, of which {len(held_out)} would be "
                f"held out; give more, or another {type(self).__name__}.held_out than {self.held_out}"
            )
        train = [row for row in rows if row.text not in held_out]
        return Rows(train, [row for row in rows if row.text in held_out], digest.hexdigest())


class Examples(grain.MapDataset):
    """Example i is `{name: array[i]}` for each of the arrays, which have as many entries as there are examples."""

    def __init__(self, **arrays: np.ndarray) -> None:
        super().__init__()
        self._arrays = arrays
        for array in arrays.values():
            array.setflags(write=False)  # elements are views

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        return {name: array[index % len(self), ...] for name, array in self._arrays.items()}  # the dots make an array of a scalar, too


def padded(rows: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Rows of integers, each at most `length` long, as int32 [n, length] with -1 to the right."""
    array = np.full((len(rows), length), -1, np.int32)
    for into, row in zip(array, rows):
        into[: len(row)] = row
    return array
