"""Which pairs each mask allows, how masks combine, and that they are values."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import attention, lookup, masks
from pallas_kernels.flash.request import make_request
from pallas_kernels.testing import mask_as_booleans

MANY = settings(max_examples=10 * settings().max_examples, deadline=None)
LEAVES = ["causal", "sliding_window", "segments", "prefix", "lengths", "valid", "dense", "block_sparse", "dilated", "own", "bounded"]


def allowed_by(mask: Any, B: int = 1, N: int = 1, T: int = 4, S: int = 4, q_positions: Any = None, kv_positions: Any = None) -> Any:
    """The booleans `[B, N, T, S]` of a call with these sizes."""
    q, k = np.zeros((B, T, N, 1), "float32"), np.zeros((B, S, 1, 1), "float32")
    request = make_request(q, k, k, mask, None, None, None, None, q_positions, kv_positions)
    assert request.mask is not None
    return np.broadcast_to(request.mask.allowed(request.index()), (B, N, T, S))


def drawn(mask: Any, **sizes: int) -> str:
    """The first batch row and head: a line a query, x where allowed."""
    return " ".join("".join(".x"[bool(a)] for a in row) for row in allowed_by(mask, **sizes)[0, 0])


def bracket(i: Any, low: Any, high: Any) -> Any:
    return (i.k >= low) & (i.k <= high)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (masks.causal(), "x... xx.. xxx. xxxx"),
        (~masks.causal(), ".xxx ..xx ...x ...."),
        (masks.sliding_window(1), "x... xx.. .xx. ..xx"),
        (masks.sliding_window(np.int64(0), 2), "xxx. .xxx ..xx ...x"),
        (masks.prefix([2]), "xx.. xx.. xxx. xxxx"),
        (masks.segments([[0, 0, 1, 1]]), "xx.. xx.. ..xx ..xx"),
        (masks.segments(np.array([[0, 0, 1, 1]], np.int8), jnp.array([[1, 2, 0, 1]])), "..x. ..x. x..x x..x"),
        (masks.lengths([3]), "xxx. xxx. xxx. xxx."),
        (masks.valid([[False, True, True, False]]), ".xx. .xx. .xx. .xx."),
        (masks.dense(np.eye(4, dtype=bool)), "x... .x.. ..x. ...x"),
        (masks.dense([True, False, False, True]), "x..x x..x x..x x..x"),
        (masks.block_sparse(np.array([[1, 0], [1, 1]], bool), 2), "xx.. xx.. xxxx xxxx"),
        (masks.block_sparse([[False, True]], 3), "...x ...x ...x ...."),  # beyond the layout nothing is on
        (masks.dilated(2), "x.x. .x.x x.x. .x.x"),
        (masks.causal() & masks.dilated(3), "x... .x.. ..x. x..x"),
        (masks.dilated(2) | masks.sliding_window(0, 1), "xxx. .xxx x.xx .x.x"),
        (~(masks.causal() | masks.lengths([3])) & ~masks.valid([[True] * 3 + [False]]), "...x ...x ...x ...."),
        (masks.from_function(lambda i: i.k != i.q), ".xxx x.xx xx.x xxx."),
        (masks.from_function(lambda i: True), "xxxx xxxx xxxx xxxx"),
        (~masks.from_function(lambda i: True), ".... .... .... ...."),  # ~True is -2 in Python
        (masks.from_function(partial(bracket, high=2), low=(np.arange(4)[None], "BT")), "xxx. .xx. ..x. ...."),
        (lambda i: (i.q_index + i.k_index) % 3 == 0, "x..x ..x. .x.. x..x"),
        (np.tri(4, dtype=bool)[:, ::-1], "...x ..xx .xxx xxxx"),
    ],
)
def test_allows(mask: Any, expected: str) -> None:
    assert drawn(mask) == expected


@MANY
@given(st.data())
def test_equals_its_formula_by_positions_places_batch_and_head(some_mask: Any, some_positions: Any, data: Any) -> None:
    B, N, T, S = data.draw(st.sampled_from([(1, 4, 13, 17), (3, 2, 11, 1), (2, 3, 1, 7)]))
    positions = some_positions(data.draw, B, T), some_positions(data.draw, B, S)
    mask, expected = some_mask(data.draw, B, N, T, S, *positions)
    np.testing.assert_array_equal(allowed_by(mask, B, N, T, S, *positions), expected)


def test_places_are_not_positions() -> None:
    """lengths and block_sparse count places in the arrays, causal and windows positions."""
    places = {"q_positions": np.array([3, 2, 1, 0]), "kv_positions": np.array([0, 2, 4, 6])}
    assert (allowed_by(masks.lengths([1]), **places)[0, 0] == (np.arange(4) < 1)).all()
    assert (allowed_by(masks.block_sparse(np.eye(4, dtype=bool), 1), **places)[0, 0] == np.eye(4)).all()
    assert allowed_by(masks.causal(), **places)[0, 0].sum(-1).tolist() == [2, 2, 1, 1]


EVERY = {
    "causal": lambda: masks.causal(),
    "window": lambda: masks.sliding_window(3, 1),
    "dilated": lambda: masks.dilated(2),
    "prefix": lambda: masks.prefix(jnp.array([2, 3])),
    "segments": lambda: masks.segments(jnp.array([[1, 1, 2], [1, 2, 2]])),
    "lengths": lambda: masks.lengths(jnp.array([2, 1])),
    "valid": lambda: masks.valid(jnp.array([[True, True, False], [False, True, True]])),
    "dense": lambda: masks.dense(jnp.tri(3, dtype=bool)),
    "block_sparse": lambda: masks.block_sparse(np.tri(3, dtype=bool), 1),
    "partial": lambda: masks.from_function(partial(bracket, high=1), low=(jnp.arange(3), "T")),
    "partial bounds": lambda: masks.from_function(_own, bounds=partial(_reach, width=2)),
    "combined": lambda: (masks.causal() | masks.dilated(2)) & ~masks.lengths(jnp.array([1, 2])),
}


def _own(i: Any) -> Any:
    return i.k - i.q == 2


def _reach(low: Any, high: Any, width: int) -> Any:
    return low, high + width


@pytest.mark.parametrize("name", EVERY)
def test_made_twice_it_compiles_once(name: str, normal: Any, close: Any) -> None:
    """A mask is an argument of a jitted function: its arrays are leaves, all else is compared by value."""
    q = normal(2, 3, 1, 2)
    traces: list[Any] = []

    @jax.jit
    def call(mask: Any) -> Any:
        traces.append(mask)
        return attention(q, q, q, mask=mask)

    first, second = EVERY[name](), EVERY[name]()
    np.testing.assert_array_equal(call(first), call(second))
    np.testing.assert_array_equal(call(first), call(jax.tree.map(np.asarray, first)))
    assert len(traces) == 1
    close(jax.jit(partial(attention, mask=first))(q, q, q), call(first))
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert hash(first) == hash(second)
    assert first == jax.tree.map(lambda a: a, first)


def test_equality_is_by_structure_numbers_and_the_same_arrays() -> None:
    assert masks.sliding_window(3) == masks.sliding_window(3, 0) != masks.sliding_window(3, 1)
    assert masks.causal() != masks.dilated(1) and masks.causal() != "causal"
    assert masks.causal() & masks.dilated(2) == masks.causal() & masks.dilated(2) != masks.dilated(2) & masks.causal()
    assert ~masks.causal() == ~masks.causal() != masks.causal() | masks.causal()
    ids = jnp.array([[1, 2]], "int32")
    assert masks.segments(ids) == masks.segments(ids) != masks.segments(ids + 1)
    assert hash(masks.segments(ids)) == hash(masks.segments(ids + 1))
    assert len({masks.causal(), masks.causal(), masks.dilated(2), masks.dilated(2), masks.dilated(3)}) == 3
    assert masks.from_function(partial(bracket, low=1, high=2)) == masks.from_function(partial(bracket, high=2, low=1))
    assert masks.from_function(partial(bracket, low=1, high=2)) != masks.from_function(partial(bracket, low=1, high=3))
    assert masks.from_function(_own) == masks.from_function(_own) != masks.from_function(_own, bounds=partial(_reach, width=2))
    assert masks.from_function(lambda i: i.k == i.q) != masks.from_function(lambda i: i.k == i.q)


def test_is_frozen() -> None:
    with pytest.raises(AttributeError):
        masks.causal().rule = None  # type: ignore[attr-defined]


def test_prints_as_it_was_made() -> None:
    made = masks.causal() & ~masks.sliding_window(3) | masks.lengths([5])
    assert repr(made) == "((causal() & ~sliding_window(left=3, right=0)) | lengths(kv_lengths=(int32[1], 'B')))"


def test_arrays_have_no_gradient(normal: Any) -> None:
    """A float array of a mask is a constant, on every backend."""
    q, edge = normal(5, 2, 3), jnp.array([1.5, 2.5], "float32")
    for backend in ("reference", "blockwise"):

        def total(edge: Any) -> Any:
            mask = masks.from_function(lambda i, edge: i.k < edge, edge=(edge, "N"))
            return attention(q, q, q, mask=mask, backend=backend).sum()  # noqa: B023

        assert (jax.jit(jax.grad(total))(edge) == 0).all()


def test_lookup_of_an_array_from_numpy_under_jit(normal: Any, close: Any) -> None:
    """`lookup` indexes by traced positions, an array known before the program runs included."""
    q = normal(2, 3, 2, 2)
    table = np.array([[True, False, True], [False, True, True]])
    mask = masks.from_function(lambda i, table: lookup(table, i.k), table=(table, "N"))
    for backend in ("reference", "blockwise"):
        actual = jax.jit(partial(attention, mask=mask, backend=backend))(q, q, q)
        close(actual, jax.jit(partial(attention, mask=table[:, None]))(q, q, q))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: masks.sliding_window(-1), ValueError, "sliding_window: left: expected an integer of at least 0, received -1"),
        (lambda: masks.sliding_window(3, -2), ValueError, "sliding_window: right: expected an integer of at least 0, received -2"),
        (lambda: masks.sliding_window(2.0), ValueError, "sliding_window: left: expected an integer of at least 0, received 2.0"),
        (lambda: masks.sliding_window(True), ValueError, "sliding_window: left: expected an integer of at least 0, received True"),
        (lambda: masks.dilated(0), ValueError, "dilated: step: expected an integer of at least 1, received 0"),
        (lambda: masks.dilated(2.5), ValueError, "dilated: step: expected an integer of at least 1, received 2.5"),
        (lambda: masks.block_sparse(np.eye(2, dtype=bool), 0), ValueError, "block_sparse: block: expected an integer of at least 1, received 0"),
        (lambda: masks.block_sparse(np.eye(2, dtype=bool), 1.5), ValueError, "block_sparse: block: expected an integer of at least 1, received 1.5"),
        (lambda: masks.block_sparse(np.ones(3, bool), 2), ValueError, r"block_sparse: layout: expected two dimensions .* received shape \(3,\)"),
        (lambda: masks.block_sparse(np.eye(2), 2), TypeError, "block_sparse: layout: expected booleans, received float"),
        (lambda: masks.segments(np.ones((1, 4), "float32")), TypeError, "segments: q_ids: expected integers, received float32"),
        (lambda: masks.segments(np.ones((1, 4), int), np.ones((1, 4), bool)), TypeError, "segments: kv_ids: expected integers, received bool"),
        (lambda: masks.segments(np.ones(4, int)), ValueError, r"segments: q_ids: axes 'BT' need 2 dimensions, received shape \(4,\)"),
        (lambda: masks.lengths(3), ValueError, r"lengths: kv_lengths: axes 'B' need 1 dimensions, received shape \(\)"),
        (lambda: masks.lengths([1.5]), TypeError, "lengths: kv_lengths: expected integers, received float"),
        (lambda: masks.prefix([True]), TypeError, "prefix: lengths: expected integers, received bool"),
        (lambda: masks.valid([[1, 0]]), TypeError, "valid: kv_valid: expected booleans, received int.*; compare first: array != 0"),
        (lambda: masks.dense(np.ones((2, 2), "int8")), TypeError, "dense: array: expected booleans, received int8"),
        (lambda: masks.dense(np.ones((1, 1, 1, 2, 2), bool)), ValueError, r"broadcastable to \[B, N, T, S\] .* received shape \(1, 1, 1, 2, 2\)"),
        (lambda: masks.causal() & np.eye(4, dtype=bool), TypeError, r"received ndarray; wrap a boolean array in masks.dense\(array\)"),
        (lambda: masks.causal() | True, TypeError, "received bool"),
        (lambda: masks.from_function("causal"), TypeError, "fn: expected a function of a tile, received str"),
        (lambda: masks.from_function(_own, bounds=partial(_reach, width=np.ones(2))), TypeError, "_reach: arguments bound by .* must be hashable"),
    ],
)
def test_refuses(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (masks.dense(np.ones((3, 1, 4, 4), bool)), r"expect B = 2 or 1, received 3 in shape \(3, 1, 4, 4\)"),
        (masks.dense(np.ones((4, 5), bool)), "expect S = 4 or 1, received 5"),
        (masks.dense(np.ones((3, 1, 4), bool)), "expect N = 2 or 1, received 3"),
        (masks.segments(np.ones((2, 5), int)), "segments: q_ids: axes 'BT' expect T = 4 or 1, received 5"),
        (masks.causal() & ~masks.lengths([1, 2, 3]), "lengths: kv_lengths: axes 'B' expect B = 2 or 1, received 3"),
    ],
)
def test_an_array_that_does_not_fit_the_call_is_refused(mask: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        allowed_by(mask, B=2, N=2)


@pytest.mark.parametrize("make", [lambda ids: masks.segments(ids), lambda ids: masks.lengths(ids[0]), lambda ids: masks.prefix(ids[0])])
@pytest.mark.parametrize("ids", [np.array([[0, 2**32]]), np.array([[0, -(2**31) - 1]]), np.array([[2**32 - 1]], np.uint32), np.array([[2**63 + 1]], np.uint64)])
def test_integers_that_int32_does_not_have_are_refused(make: Any, ids: Any) -> None:
    with pytest.raises(ValueError, match=r"expected integers that int32 has, received .* to .*; number them anew"):
        make(ids)


@pytest.mark.parametrize("left", [2**31 - 1, 2**40])
def test_a_window_without_end(left: int) -> None:
    q, k = np.arange(9)[:, None], np.arange(9)
    for mask, expected in ((masks.sliding_window(left), k <= q), (masks.sliding_window(0, left), k >= q), (masks.sliding_window(left, left), k >= 0 * q)):
        np.testing.assert_array_equal(mask_as_booleans(np.ones((1, 9, 1, 1)), np.ones((1, 9, 1, 1)), mask)[0, 0], expected)


def test_an_array_on_the_left_is_told_the_way_out() -> None:
    for array in (np.ones((3, 3), bool), jnp.ones((3, 3), bool)):
        for combine in (lambda a, m: a & m, lambda a, m: a | m):
            with pytest.raises(TypeError, match=r"wrap a boolean array in masks.dense\(array\)"):
                combine(array, masks.causal())


@pytest.mark.parametrize(
    ("fn", "error", "words"),
    [
        (lambda i: i.k - i.q, TypeError, "expected a result of bool, received int32"),
        (lambda i: (i.k == i.q)[..., None], ValueError, r"expected a result of the tile's shape, received \(1, 1, 1, 1, 1\)"),
        (lambda i: (i.k == i.q, i.q == 0), ValueError, "expected one array, received 2"),
    ],
)
def test_a_function_that_gives_no_booleans_of_the_tile_is_refused(fn: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        allowed_by(masks.from_function(fn))
