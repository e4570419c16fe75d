import datetime

import numpy as np
import pytest

from transformer_jax.data import Dates
from transformer_jax.data.dates import WAYS, in_words, ordinal, year_in_words


def test_a_date_is_written_in_ten_ways() -> None:
    assert [way(datetime.date(1987, 3, 21)) for way in WAYS] == [
        "21 March 1987",
        "March 21, 1987",
        "Saturday, March 21st, 1987",
        "21st of March 1987",
        "21-Mar-1987",
        "Mar 21 1987",
        "1987/3/21",
        "Sat 21 Mar 1987",
        "the twenty-first of March, nineteen eighty-seven",
        "march the twenty-first, 1987",
    ]


def test_numbers_are_spelled_as_english_spells_them() -> None:
    assert [in_words(n) for n in (0, 3, 13, 15, 18, 20, 40, 99)] == ["zero", "three", "thirteen", "fifteen", "eighteen", "twenty", "forty", "ninety-nine"]
    wanted = ["first", "second", "third", "fourth", "fifth", "eighth", "ninth", "twelfth", "thirteenth", "twentieth", "twenty-second", "thirty-first"]
    assert [ordinal(n) for n in (1, 2, 3, 4, 5, 8, 9, 12, 13, 20, 22, 31)] == wanted
    years = {1066: "ten sixty-six", 1800: "eighteen hundred", 1905: "nineteen oh five", 2000: "two thousand", 2007: "two thousand and seven"}
    assert {year: year_in_words(year) for year in years} == years


def test_what_is_written_says_one_date_and_each_way_differs() -> None:
    start = datetime.date(1995, 1, 1).toordinal()
    written: dict[str, int] = {}
    for day in range(start, start + 12 * 366):
        for way in WAYS:
            assert written.setdefault(way(datetime.date.fromordinal(day)), day) == day
    assert len(written) == 12 * 366 * len(WAYS)


def test_no_day_is_on_both_sides_and_targets_are_iso() -> None:
    data = Dates(1999, last=2001, held_out=0.1).prepare(64)
    sides = []
    for part in (data.train, data.held_out):
        examples = [part[n] for n in range(len(part))]
        assert {a.shape for e in examples for a in e.values()} == {(64,), (10,)}
        sides.append({data.vocabulary.decode(e["target"]) for e in examples})
        for e in examples[::97]:
            source = data.vocabulary.decode(e["source"][e["source"] >= 0])
            assert source in [way(datetime.date.fromisoformat(data.vocabulary.decode(e["target"]))) for way in WAYS]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 1096 and len(sides[1]) == len(data.held_out) == 110
    assert len(data.train) == 986 * len(WAYS)
    np.testing.assert_array_equal(data.train[3]["source"], Dates(1999, last=2001, held_out=0.1).prepare(64).train[3]["source"])


def test_bad_years_and_a_short_context_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Dates\.first, Dates\.last: expected years in order, from 1000 to 2999, received 2000 and 1999"):
        Dates(2000, last=1999)
    with pytest.raises(ValueError, match=r"context: expected at least 5[0-9] characters for the longest of the dates, received 20"):
        Dates().prepare(20)
