"""What is said of a tile is true of its elements."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import masks
from pallas_kernels.flash import lists
from pallas_kernels.flash.lists import judge, reach, together, visits
from pallas_kernels.flash.masks import Verdict
from pallas_kernels.flash.request import make_request
from pallas_kernels.flash.tiles import KEYS, ROWS, Operands, by_group, cut, on_its_side, pad

MANY = settings(max_examples=10 * settings().max_examples, deadline=None)
B, K, G = 2, 2, 3


def operands_of(mask: Any, T: int, S: int, q_positions: Any = None, kv_positions: Any = None) -> Operands:
    q, k = np.zeros((B, T, K * G, 1), "float32"), np.zeros((B, S, K, 1), "float32")
    request = make_request(q, k, k, mask, None, None, None, None, q_positions, kv_positions)
    return by_group(Operands(request.index(), request.mask), K)


def tiles_of(allowed: Any, tile: tuple[int, int]) -> tuple[Any, Any]:
    """Whether a tile has anything, and everything, allowed: `[B, K, G, query tiles, key tiles]`."""
    T, S = allowed.shape[-2:]
    parts = [[allowed[..., t : t + tile[0], s : s + tile[1]] for s in range(0, S, tile[1])] for t in range(0, T, tile[0])]
    some, every = (np.array([[reduce(p, axis=(-1, -2)) for p in row] for row in parts]) for reduce in (np.any, np.all))
    return tuple(np.moveaxis(x, (0, 1), (-2, -1)).reshape(B, K, G, len(parts), len(parts[0])) for x in (some, every))


@MANY
@given(st.data())
def test_never_means_nothing_allowed_and_always_everything(some_mask: Any, some_positions: Any, data: Any) -> None:
    draw = data.draw
    T, S, tile = draw(st.integers(1, 40)), draw(st.integers(1, 40)), (draw(st.integers(1, 17)), draw(st.integers(1, 17)))
    positions = some_positions(draw, B, T), some_positions(draw, B, S)
    mask, allowed = some_mask(draw, B, K * G, T, S, *positions)
    verdict = judge(operands_of(mask, T, S, *positions), (T, S), tile, static=True)
    some, every = tiles_of(allowed, tile)
    assert all(isinstance(x, np.ndarray) for x in verdict)
    assert not (verdict.never & some).any()
    assert not (verdict.always & ~every).any()


def exact_mask(draw: Any, kind: str, T: int) -> tuple[Any, Any]:
    """A mask whose verdicts are exact for positions in order, sorted ids and self-attention, and its booleans."""
    place = np.arange(T)
    gap = place - place[:, None]
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    if kind == "causal":
        return masks.causal(), gap <= 0
    if kind == "sliding_window":
        left, right = draw(st.integers(0, T)), draw(st.integers(0, 9))
        return masks.sliding_window(left, right), (gap >= -left) & (gap <= right)
    if kind == "segments":
        ids = np.sort(rng.integers(-9, 9, (B, T)), -1)
        return masks.segments(ids), (ids[:, :, None] == ids[:, None])[:, None]
    length = rng.integers(0, T + 2, B)
    below = place < length[:, None, None, None]
    return (masks.prefix(length), (gap <= 0) | below) if kind == "prefix" else (masks.lengths(length), below)


@MANY
@given(st.data(), st.sampled_from(["causal", "sliding_window", "segments", "prefix", "lengths"]))
def test_verdicts_are_exact_in_order(data: Any, kind: str) -> None:
    T, tile = data.draw(st.integers(1, 40)), (data.draw(st.integers(1, 17)), data.draw(st.integers(1, 17)))
    mask, allowed = exact_mask(data.draw, kind, T)
    some, every = tiles_of(np.broadcast_to(allowed, (B, K * G, T, T)), tile)
    for made, has, full in ((mask, some, every), (~mask, ~every, ~some)):
        never, always = judge(operands_of(made, T, T), (T, T), tile, static=True)
        np.testing.assert_array_equal(np.broadcast_to(never, has.shape), ~has)
        np.testing.assert_array_equal(np.broadcast_to(always, full.shape), full)


listed = jax.jit(lambda verdict: visits(together(verdict)))


@given(st.data(), st.sampled_from(["causal", "sliding_window", "segments", "prefix", "lengths"]))
def test_lists_hold_the_tiles_with_something_allowed_full_ones_first_both_ways_round(data: Any, kind: str) -> None:
    T, tile = 37, (5, 7)
    mask, allowed = exact_mask(data.draw, kind, T)
    some, every = tiles_of(np.broadcast_to(allowed, (B, K * G, T, T)), tile)
    verdict = Verdict(*(np.broadcast_to(x, some.shape) for x in judge(operands_of(mask, T, T), (T, T), tile, static=True)))
    # One chunk of heads sees a tile where any of its heads does.
    some, every = some.any((0, 1, 2)), every.all((0, 1, 2))
    for turned, has, full in ((verdict, some, every), (Verdict(*(np.swapaxes(x, -1, -2) for x in verdict)), some.T, every.T)):
        lists = listed(turned)
        spans = reach(turned.never)
        for n in range(len(has)):
            first, more = int(lists.full[n]), int(lists.partial[n])
            assert lists.order[n, :first].tolist() == np.flatnonzero(full[n]).tolist()
            assert lists.order[n, first : first + more].tolist() == np.flatnonzero(has[n] & ~full[n]).tolist()
            where = np.flatnonzero(has[n])
            assert spans[n] == ((where[0], where[-1] + 1) if where.size else (0, 0))


@given(st.data())
def test_verdicts_are_the_same_while_the_program_runs(some_mask: Any, data: Any) -> None:
    T, S, tile = 13, 11, (5, 3)
    positions = np.stack([np.random.default_rng(n).permutation(T) for n in range(B)]), None
    mask, _ = some_mask(data.draw, B, K * G, T, S, *positions)
    operands = operands_of(mask, T, S, *positions)
    expected = judge(operands, (T, S), tile, static=True)

    actual = jax.jit(lambda operands: judge(operands, (T, S), tile))(operands)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(*np.broadcast_arrays(a, b))


def test_static_asks_only_what_is_known_before_the_program_runs() -> None:
    """Causal & segments with traced ids: empty above the diagonal is known, full below it is not."""
    T, tile = 12, (4, 4)

    @jax.jit
    def run(ids: Any) -> Any:
        verdict = judge(operands_of(masks.causal() & masks.segments(ids), T, T), (T, T), tile, static=True)
        assert isinstance(verdict.never, np.ndarray) and isinstance(verdict.always, np.ndarray)
        np.testing.assert_array_equal(verdict.never[0, 0, 0], np.triu(np.ones((3, 3), bool), 1))
        assert not verdict.always.any()
        return ids

    run(jnp.zeros((B, T), "int32"))


def test_no_mask_is_always_and_never_not() -> None:
    never, always = judge(operands_of(None, 7, 5), (7, 5), (3, 2))
    assert never.shape == always.shape == (1, 1, 1, 3, 3) and not never.any() and always.all()


def test_three_valued_logic() -> None:
    """F: never, T: always, P: perhaps."""
    values = {"F": (True, False), "T": (False, True), "P": (False, False)}
    letter = {v: k for k, v in values.items()}

    def said(v: Verdict) -> str:
        return letter[bool(v.never), bool(v.always)]

    made = {k: Verdict(*map(np.bool_, v)) for k, v in values.items()}
    table = {a + b: (said(made[a] & made[b]), said(made[a] | made[b])) for a in "FTP" for b in "FTP"}
    assert table == {
        "FF": ("F", "F"), "FT": ("F", "T"), "FP": ("F", "P"), "TF": ("F", "T"), "TT": ("T", "T"), "TP": ("P", "T"),
        "PF": ("F", "P"), "PT": ("P", "T"), "PP": ("P", "P"),
    }  # fmt: skip
    assert [said(~made[a]) for a in "FTP"] == ["T", "F", "P"]


@pytest.mark.parametrize("to", [np.asarray, jnp.asarray])
def test_cut_pad_and_turn_leave_axes_of_one_alone(to: Any) -> None:
    a, b = np.arange(2 * 3 * 5 * 7).reshape(2, 1, 3, 5, 7), np.arange(7 * 2).reshape(1, 1, 1, 1, 7, 2)
    tree = to(a), to(b)
    for start in (2, jnp.int32(2)):
        rows = cut(tree, ROWS, start, 2)
        np.testing.assert_array_equal(rows[0], a[..., 2:4, :])
        np.testing.assert_array_equal(rows[1], b)
        keys = cut(tree, KEYS, start, 4)
        np.testing.assert_array_equal(keys[0], a[..., 2:6])
        np.testing.assert_array_equal(keys[1], b[..., 2:6, :])
    long = pad(tree, ROWS, 8)
    assert long[0].shape == (2, 1, 3, 8, 7) and long[1].shape == b.shape
    np.testing.assert_array_equal(long[0][..., 5:, :], np.repeat(a[..., 4:, :], 3, 3))
    turned = on_its_side(tree)
    np.testing.assert_array_equal(turned[0], np.moveaxis(a, 4, 2))
    assert turned[1].shape == (1, 1, 7, 1, 1, 2)
    assert jax.tree.map(np.shape, by_group((np.zeros((2, 6, 3)), np.zeros((2, 1, 3))), 2)) == ((2, 2, 3, 3), (2, 1, 1, 3))


@pytest.mark.parametrize("most", [10**6, 10])
def test_a_mask_without_a_rule_is_looked_at_while_the_program_is_made_only_if_it_is_small(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either way the verdict is exact; a large one is left to the program."""
    monkeypatch.setattr(lists, "KNOWN_ELEMENTS", most)
    T, tile = 12, (4, 4)
    operands = operands_of(masks.from_function(lambda i: (i.q // 4 == 1) & (i.k < 6)), T, T)
    verdicts = []

    @jax.jit
    def run() -> Any:
        verdicts.append(judge(operands, (T, T), tile))
        return verdicts[0]

    never, always = run()
    assert isinstance(verdicts[0].never, np.ndarray) is (most > 10)
    expected = np.zeros((3, 3), bool)
    expected[1, :2] = True
    np.testing.assert_array_equal(~np.asarray(never).all((0, 1, 2)), expected)
    np.testing.assert_array_equal(np.asarray(always).all((0, 1, 2)), expected & (np.arange(3) == 0))
