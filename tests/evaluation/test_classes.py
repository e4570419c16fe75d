"""Confusions and their scores, against plain counting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer_jax.evaluation import confusion, exact_matches, scores_of
from transformer_jax.evaluation.classes import macro_f1

C = 5
pairs = st.lists(st.tuples(st.integers(0, C - 1), st.integers(-2, C - 1)), max_size=40)


def arrays(drawn: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    both = np.array(drawn, np.int32).reshape(-1, 2)
    return both[:, 0], both[:, 1]


@given(pairs)
def test_a_confusion_counts_what_was_made_of_each_class(drawn: list[tuple[int, int]]) -> None:
    counts = confusion(*arrays(drawn), C)
    assert counts.dtype == np.int64
    assert counts.tolist() == [[drawn.count((made, right)) for made in range(C)] for right in range(C)]


@given(pairs)
def test_scores_are_those_of_counting_hits_false_alarms_and_misses(drawn: list[tuple[int, int]]) -> None:
    scores = scores_of(confusion(*arrays(drawn), C))
    counted, f1 = [(made, right) for made, right in drawn if right >= 0], []
    for n in range(C):
        hits = sum(made == right == n for made, right in counted)
        alarms, misses = (sum(pair[k] == n != pair[1 - k] for pair in counted) for k in (0, 1))
        assert scores.support[n] == hits + misses
        assert scores.precision[n] == (hits / (hits + alarms) if hits + alarms else 0)
        assert scores.recall[n] == (hits / (hits + misses) if hits + misses else 0)
        mean = 2 / (1 / scores.precision[n] + 1 / scores.recall[n]) if hits else 0
        np.testing.assert_allclose(scores.f1[n], mean, rtol=1e-12)
        f1 += [mean] * (hits + alarms + misses > 0)
    if counted:
        np.testing.assert_allclose(macro_f1(confusion(*arrays(drawn), C)), np.mean(f1), rtol=1e-12)


def test_what_is_counted_may_have_any_shape_and_padding_anything_in_it() -> None:
    made, right = np.array([[0, 1, 99], [1, 1, -5]]), np.array([[0, 1, -1], [0, 1, -1]])
    assert confusion(made, right, 2).tolist() == [[1, 1], [0, 2]]


def test_classes_out_of_range_and_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="made: expected classes from 0 to 2, received 1 to 3"):
        confusion(np.array([1, 3]), np.array([0, 1]), 3)
    with pytest.raises(ValueError, match="right: expected classes from 0 to 2, received 0 to 4"):
        confusion(np.array([1, 2]), np.array([0, 4]), 3)
    with pytest.raises(ValueError, match=r"made: expected the shape of right, \(2,\), received \(3,\)"):
        confusion(np.zeros(3, int), np.zeros(2, int), 3)


rows = st.lists(st.integers(0, 2), max_size=3)


@given(st.lists(st.tuples(rows, rows), min_size=1, max_size=7), st.integers(0, 2), st.integers(0, 2))
def test_sequences_match_where_they_are_the_same_whatever_their_padding(drawn: list[tuple[list[int], list[int]]], more: int, other: int) -> None:
    made = np.array([row + [-1] * (3 + more - len(row)) for row, _ in drawn])
    right = np.array([row + [-4] * (3 + other - len(row)) for _, row in drawn])
    assert exact_matches(made, right).tolist() == [a == b for a, b in drawn]
