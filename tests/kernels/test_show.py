import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import attention, lookup, masks
from pallas_kernels.flash import show
from pallas_kernels.testing import mask_as_booleans

B, N, T, S = 2, 3, 5, 7


def booleans(picture: str) -> Any:
    return np.array([[int(c) for c in line.split()] for line in picture.splitlines()], bool)


def test_the_pictures_of_the_docstring():
    head, *rows = [re.split(" {2,}", line.strip()) for line in masks.__doc__.splitlines() if re.match(r"    (causal\(\)|[01] )", line)]
    assert head == ["causal()", "sliding_window(1)", "prefix([2])", "segments([0, 0, 1, 1])"]
    drawn = [masks.causal(), masks.sliding_window(1), masks.prefix([2]), masks.segments([[0, 0, 1, 1]])]
    assert [masks.show(mask, 4) for mask in drawn] == ["\n".join(column) for column in zip(*rows)]


def test_at_a_prompt_it_shows_as_it_is():
    assert repr(masks.show(masks.causal(), 2)) == "1 0\n1 1"


def arrays(rng: Any) -> dict[str, Any]:
    flags = rng.random((B, N, T, S)) < 0.5
    layout = rng.random((3, 4)) < 0.5
    limits = rng.integers(0, S, (B, N, T))
    table = rng.random((N, 4)) < 0.5
    return {
        "none": None,
        "booleans": flags,
        "booleans of jax": jnp.asarray(flags[0, 0]),
        "a function": lambda i: (i.q + i.k + i.head + i.batch) % 3 == 0,
        "by head": flags[:, :1] | flags[:1],
        "block_sparse": masks.block_sparse(layout, 2),
        "combined": masks.causal() & ~masks.valid(flags[:, 0, 0]) | masks.segments(flags[:, 0, :, 0] * 1, flags[:, 0, 0] * 1),
        "an own one": masks.from_function(lambda i, limit: i.k_index < limit, limit=(limits, "BNT")),
        "with a lookup": masks.from_function(lambda i, table: lookup(table, i.k - i.q), table=(table, "N")),
    }


@pytest.mark.parametrize("kind", arrays(np.random.default_rng(0)))
@pytest.mark.parametrize("placed", [False, True])
def test_it_is_what_attention_makes_of_it(kind, placed):
    rng = np.random.default_rng(0)
    mask = arrays(rng)[kind]
    q, k = jnp.zeros((B, T, N, 1)), jnp.zeros((B, S, N, 1))
    positions = {"q_positions": rng.permutation(T), "kv_positions": rng.integers(-3, 9, (B, S))} if placed else {}
    expected = np.asarray(mask_as_booleans(q, k, mask, **positions))
    for batch, head in np.ndindex(B, N):
        assert (booleans(masks.show(mask, T, S, batch=batch, head=head, **positions)) == expected[batch, head]).all()


@pytest.mark.parametrize(("T", "S"), [(41, 41), (83, 83), (17, 300), (300, 17), (1, 41)])
def test_a_long_one_has_a_character_for_each_block(T, S, monkeypatch):
    monkeypatch.setattr(show, "ELEMENTS", 8 * S)  # it is looked at piece by piece
    allowed = np.random.default_rng(0).random((T, S)) < 0.01
    allowed[: T // 2, S // 2 :] = True
    legend, *lines = masks.show(masks.dense(allowed), T, S).splitlines()
    block = int(re.fullmatch(r"(\d+) x \1 to a character: \. nothing allowed, \+ some, # all", legend)[1])
    assert 20 < max(T, S) / block <= 40
    expected = []
    for start in range(0, T, block):
        blocks = [allowed[start : start + block, column : column + block] for column in range(0, S, block)]
        expected.append(" ".join("#" if b.all() else "+" if b.any() else "." for b in blocks))
    assert lines == expected
    assert max(map(len, lines)) < 80


def test_a_plot_is_dark_where_allowed_and_needs_no_screen(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    assert masks.show(masks.causal(), 64, file=tmp_path / "mask.png") == masks.show(masks.causal(), 64)
    pixels = image.imread(tmp_path / "mask.png")[..., 0]
    height, width = pixels.shape
    below, above = pixels[int(0.7 * height), int(0.35 * width)], pixels[int(0.3 * height), int(0.7 * width)]
    assert below < 0.1 and above > 0.9


def test_a_plot_without_matplotlib_says_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="show: file: plotting needs matplotlib: pip install matplotlib; without file, show draws in characters"):
        masks.show(masks.causal(), 4, file=tmp_path / "mask.png")


@pytest.mark.parametrize(
    ("mask", "options", "error", "message"),
    [
        (masks.lengths([1, 2, 3]), {"batch": 3}, ValueError, "show: batch: expected a number below B = 3, received 3"),
        (masks.causal(), {"batch": -1}, ValueError, "show: batch: expected a number from 0 on, received -1"),
        (np.ones((2, 5, 5), bool), {"head": 2}, ValueError, "show: head: expected a number below N = 2, received 2"),
        (np.ones((2, 5, 5), bool), {"head": 0.0}, ValueError, "show: head: expected a number below N = 2, received 0.0"),
        (masks.causal(), {"q_positions": np.zeros((3, 5), int), "batch": 3}, ValueError, "show: batch: expected a number below B = 3, received 3"),
        (masks.lengths([1, 2, 3]), {"q_positions": np.zeros((2, 5), int)}, ValueError, "show: q_positions: expected B = 3 or 1, received 2"),
        (masks.causal(), {"q_positions": [1, 2]}, ValueError, r"show: q_positions: expected shape \(5,\) or \(B, 5\), received \(2,\)"),
        (masks.causal(), {"kv_positions": np.zeros(5)}, TypeError, "show: kv_positions: expected integers, received float64"),
        (masks.causal(), {"S": 0}, ValueError, "show: S: expected an integer of at least 1, received 0"),
        (np.ones((4, 5), bool), {}, ValueError, "dense: array: axes 'BNTS' expect T = 5 or 1, received 4"),
        (np.ones((5, 5)), {}, TypeError, "dense: array: expected booleans, received float"),
        ("causal", {}, TypeError, "mask: expected a mask, a boolean array, a function or None, received str"),
        (lambda i: i.q - i.k, {}, TypeError, "expected a result of bool, received int32"),
    ],
)
def test_what_can_not_be_drawn(mask, options, error, message):
    with pytest.raises(error, match=message):
        masks.show(mask, 5, **options)


def test_any_batch_row_and_head_will_do_where_all_are_alike():
    assert masks.show(masks.causal(), 3, batch=7, head=5) == masks.show(masks.causal(), 3)
    assert masks.show(lambda i: i.head == 5, 2, head=5) == "1 1\n1 1"


def test_attention_under_jit_takes_the_same_mask():
    mask = masks.lengths(jnp.array([2, 3]))
    q = jnp.ones((2, 3, 1, 4))
    o = jax.jit(lambda mask: attention(q, q, jnp.arange(6.0).reshape(2, 3, 1, 1), mask=mask))(mask)
    weights = [booleans(masks.show(mask, 3, batch=b)) for b in range(2)]
    np.testing.assert_allclose(o[..., 0, 0], [w @ v / w.sum(1) for w, v in zip(weights, np.arange(6.0).reshape(2, 3))], rtol=1e-6)
