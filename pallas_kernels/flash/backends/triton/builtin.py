"""Masks and scores that the kernels know, told by the functions they are made of, as nested tuples that choose code when a kernel is compiled.

    mask    ("sliding_window", left, right)  ("segments", ids of queries, ids of keys)  ("causal",)  ...
    score   ("softcap", cap)  ("alibi", slopes)  ("bias", array)

An array is a `Read`. What is bound to a function comes first, in the order of its names, then its arrays, in theirs.

A new kind has its line in `KINDS` and its case in tile.py: a mask in `allowed_by`; a score in `scored_by`, `by_array` and `by_score`.
"""

from collections.abc import Iterator
from typing import Any

from pallas_kernels.flash import masks, scores
from pallas_kernels.flash.functions import Bound, TileFunction
from pallas_kernels.flash.masks import Both, Either, Leaf, Mask
from pallas_kernels.flash.request import Request

KINDS = {
    masks._causal: "causal",
    masks._sliding_window: "sliding_window",
    masks._segments: "segments",
    masks._lengths: "lengths",
    masks._valid: "valid",
    scores._softcap: "softcap",
    scores._alibi: "alibi",
    scores._bias: "bias",
}


Spec = tuple[Any, ...]


def unknown(request: Request) -> str | None:
    """The mask or score that is no built-in of these kernels, in words, or None."""
    for leaf in _conjuncts(request.mask):
        if isinstance(leaf, Leaf):
            if _kind(leaf.function) is None:
                return f"knows no mask {leaf.function.name}"
        elif not _is_prefix(leaf):
            return f"takes masks that are combined by & alone, received {leaf!r}"
    return next((f"knows no score {s.function.name}" for s in request.score if _kind(s.function) is None), None)


def specs(mask: Mask | None, score: tuple[scores.Score, ...]) -> tuple[tuple[Spec, ...], tuple[Spec, ...]]:
    """Specs of the mask's conjuncts and of the scores, in which every array is a `Read`."""
    conjuncts = [("prefix", *_leaf(m.b).function.arrays) if isinstance(m, Either) else _spec(_leaf(m).function) for m in _conjuncts(mask)]
    return tuple(conjuncts), tuple(_spec(s.function) for s in score)


def _conjuncts(mask: Mask | None) -> Iterator[Mask]:
    if isinstance(mask, Both):
        yield from _conjuncts(mask.a)
        yield from _conjuncts(mask.b)
    elif mask is not None:
        yield mask


def _is_prefix(mask: Mask) -> bool:
    """`masks.prefix`: causal, or within the prefix."""
    leaves = (mask.a, mask.b) if isinstance(mask, Either) else ()
    return [_source(leaf.function) for leaf in leaves if isinstance(leaf, Leaf)] == [masks._causal, masks._prefix]


def _leaf(mask: Mask) -> Leaf:
    assert isinstance(mask, Leaf)
    return mask


def _source(function: TileFunction) -> Any:
    return function.fn.fn if isinstance(function.fn, Bound) else function.fn


def _kind(function: TileFunction) -> str | None:
    return KINDS.get(_source(function))


def _spec(function: TileFunction) -> Spec:
    bound = [value for _, value in function.fn.kwargs] if isinstance(function.fn, Bound) else []
    return (_kind(function), *bound, *function.arrays)
