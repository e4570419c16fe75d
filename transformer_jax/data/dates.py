"""Dates as people write them, and as ISO 8601 does: pairs without end, each with one right answer."""

import datetime
import hashlib
import string
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import grain

from transformer_jax.data.base import Data, Prepared, check_context, check_held_out
from transformer_jax.data.lines import padded
from transformer_jax.tokenize import CharacterVocabulary

_ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_ONES += [f"{n}teen" for n in ("thir", "four", "fif", "six", "seven", "eigh", "nine")]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth", "twelve": "twelfth"}
_SUFFIXES = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd", 31: "st"}
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def in_words(n: int) -> str:
    """A number below 100: "eighty-seven"."""
    if n < 20:
        return _ONES[n]
    return _TENS[n // 10 - 2] + (f"-{_ONES[n % 10]}" if n % 10 else "")


def ordinal(n: int) -> str:
    """An ordinal below 100: "twenty-first"."""
    before, dash, last = in_words(n).rpartition("-")
    if last.endswith("y"):
        return f"{before}{dash}{last[:-1]}ieth"
    return f"{before}{dash}{_ORDINALS.get(last, last + 'th')}"


def year_in_words(year: int) -> str:
    """A year from 1000 to 2999: "nineteen oh five", "two thousand and seven", "twenty twenty-six"."""
    century, rest = divmod(year, 100)
    if century % 10 == 0 and rest < 10:
        thousands = f"{_ONES[century // 10]} thousand"
        return thousands if rest == 0 else f"{thousands} and {_ONES[rest]}"
    return f"{in_words(century)} " + ("hundred" if rest == 0 else f"oh {_ONES[rest]}" if rest < 10 else in_words(rest))


def _st(day: int) -> str:
    return f"{day}{_SUFFIXES.get(day, 'th')}"


# Ways to write a date. None is ambiguous: a month is a word, or comes after the year.
WAYS: tuple[Callable[[datetime.date], str], ...] = (
    lambda d: f"{d.day} {MONTHS[d.month - 1]} {d.year}",
    lambda d: f"{MONTHS[d.month - 1]} {d.day}, {d.year}",
    lambda d: f"{DAYS[d.weekday()]}, {MONTHS[d.month - 1]} {_st(d.day)}, {d.year}",
    lambda d: f"{_st(d.day)} of {MONTHS[d.month - 1]} {d.year}",
    lambda d: f"{d.day:02}-{MONTHS[d.month - 1][:3]}-{d.year}",
    lambda d: f"{MONTHS[d.month - 1][:3]} {d.day} {d.year}",
    lambda d: f"{d.year}/{d.month}/{d.day}",
    lambda d: f"{DAYS[d.weekday()][:3]} {d.day} {MONTHS[d.month - 1][:3]} {d.year}",
    lambda d: f"the {ordinal(d.day)} of {MONTHS[d.month - 1]}, {year_in_words(d.year)}",
    lambda d: f"{MONTHS[d.month - 1].lower()} the {ordinal(d.day)}, {d.year}",
)


@dataclass(frozen=True)
class Dates(Data):
    """Pairs of a written date and its ISO form, as examples `{"source": int32 [context], "target": int32 [10]}`, by character.

    Each day is written in every way (`WAYS`) to train on; a day that is held out is in no pair to train on, and is written in one way.

    Attributes:
        first, last: years.
        held_out: the fraction of the days that is not trained on, chosen by their sha256.

    Raises:
        ValueError: years out of order or outside 1000 to 2999, or `held_out` is not between 0 and 1.
    """

    first: int = 1900
    _: KW_ONLY
    last: int = 2099
    held_out: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_held_out(self)
        if not 1000 <= self.first <= self.last <= 2999:
            raise ValueError(f"Dates.first, Dates.last: expected years in order, from 1000 to 2999, received {self.first} and {self.last}")

    def prepare(self, context: int) -> Prepared:
        check_context(context)
        start, end = datetime.date(self.first, 1, 1).toordinal(), datetime.date(self.last, 12, 31).toordinal()
        days = sorted(range(start, end + 1), key=lambda day: hashlib.sha256(str(day).encode()).digest())
        cut = round(len(days) * self.held_out)
        longest = max(len(way(datetime.date(1777, month, day))) for way in WAYS for month in range(1, 13) for day in range(1, 29))
        if context < longest:
            raise ValueError(f"context: expected at least {longest} characters for the longest of the dates, received {context}; give a larger max_length")
        vocabulary = CharacterVocabulary("".join(sorted(string.ascii_letters + string.digits + " ,-/")))
        train = [(day, way) for day in sorted(days[cut:]) for way in range(len(WAYS))]
        held_out = [(day, n % len(WAYS)) for n, day in enumerate(sorted(days[:cut]))]
        return Prepared(
            vocabulary=vocabulary,
            train=_Pairs(train, vocabulary, context),
            held_out=_Pairs(held_out, vocabulary, context),
            summary=f"{len(days):,} days ({len(days) - cut:,} to train on in {len(WAYS)} ways, {cut:,} held out), vocabulary of {vocabulary.vocab_size:,}",
            digest=hashlib.sha256(f"{self.first} {self.last} {self.held_out} {[way(datetime.date(1987, 3, 21)) for way in WAYS]}".encode()).hexdigest(),
        )


class _Pairs(grain.MapDataset):
    """Written when asked for: all of them at once take longer than a training needs to begin."""

    def __init__(self, items: Sequence[tuple[int, int]], vocabulary: CharacterVocabulary, context: int) -> None:
        super().__init__()
        self._items, self._vocabulary, self._context = items, vocabulary, context

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        day, way = self._items[index % len(self)]
        date = datetime.date.fromordinal(day)
        source = padded([self._vocabulary.encode(WAYS[way](date))], self._context)[0]
        return {"source": source, "target": self._vocabulary.encode(date.isoformat())}
