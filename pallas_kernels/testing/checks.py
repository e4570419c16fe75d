"""The named checks, each meant for one kind of mistake, in the order in which they build on each other."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pallas_kernels.testing import cases, judges
from pallas_kernels.testing.calls import Call
from pallas_kernels.testing.cases import Case
from pallas_kernels.testing.choosing import Space
from pallas_kernels.testing.subject import Subject


@dataclass(frozen=True)
class Check:
    """One kind of mistake.

    Attributes:
        name: by which it can be asked for alone.
        finds: the mistake, in words that follow "it is meant to find".
        case: makes a call.
        judge: asks for something of a function on a call, and raises AssertionError.
        space: which of the sizes it uses.
    """

    name: str
    finds: str
    case: Case
    judge: Callable[[Subject, Call], None]
    space: Callable[[Space], Space] = lambda space: space.usual


def _simple(space: Space) -> Space:
    return space.simple


def _tiled(space: Space) -> Space:
    return space.tiled


def _with_leads(space: Space) -> Space:
    return space.simple.led_by((), (2, 3), (1, 2, 2))


_IN_ORDER = (
    Check("value", "wrong products or a wrong softmax, within one tile", cases.plain, judges.value, _simple),
    Check("head_dims", "H used in place of Hv", cases.plain, judges.value, lambda space: space.uneven),
    Check("scale", "a scale forgotten, or applied twice", cases.scaled, judges.value, _simple),
    Check("large_scores", "a softmax that does not subtract the row's largest score", cases.large, partial(judges.value, times=50), _simple),
    Check("grouped_heads", "query heads paired with other kv heads than their group's", cases.plain, judges.value, lambda space: space.grouped),
    Check("leading_dimensions", "leading dimensions missing, or flattened in another order", cases.by_batch_row, judges.value, _with_leads),
    Check("tiles", "a tile of keys or queries dropped, padding counted, a wrong rescaling between tiles", cases.plain, judges.value, _tiled),
    Check("lse", "a wrong log of the sum, or one in another base", cases.with_lse(cases.plain), judges.value),
    Check("masks", "a mask off by one, or a tile skipped in which something is allowed", cases.masked, judges.value, _tiled),
    Check("hidden_garbage", "masked scores in the row's largest or in the sum, masked values in the output", cases.with_garbage_hidden, judges.value),
    Check("positions", "places in the arrays taken for positions", cases.placed, judges.value),
    Check("order_of_keys", "tiles skipped by their place where positions are out of order", cases.placed_in_order, judges.any_order_of_keys),
    Check("scores", "a score applied before the scale, after the mask, in another order, or with a wrongly cut array", cases.scored, judges.value, _tiled),
    Check("sinks", "a sink that is left out of the sum, or that has a value", cases.with_sinks, judges.value),
    Check("lse_with_sinks", "an lse without the sink", cases.with_lse(cases.with_sinks), judges.value),
    Check("dropout", "other bits than the hash's, or kept probabilities not divided by 1 - rate", cases.dropped, judges.value),
    Check("empty_rows", "NaN, or a mean of all values, where nothing is allowed", cases.with_empty_rows, judges.empty_rows),
    Check("lse_of_empty_rows", "another lse than -inf where nothing is allowed", cases.with_lse(cases.with_empty_rows), judges.empty_rows),
    Check("empty_rows_with_sinks", "NaN, or another lse than the sink's logit, where nothing is allowed", cases.with_empty_rows_and_sinks, judges.empty_rows),
    Check("short_floats", "sums kept in bfloat16 or float16", cases.in_short_floats, judges.value),
    Check("gradients", "wrong gradients of q, k or v", cases.plain_or_causal, judges.gradients),
    Check("mask_gradients", "a backward pass that visits other tiles than the forward pass", cases.masked, judges.gradients, _tiled),
    Check("score_gradients", "a sum forgotten over an axis that an array's signature lacks, a score's derivative", cases.scored, judges.gradients, _tiled),
    Check("sink_gradients", "a wrong gradient of the sinks", cases.with_sinks, judges.gradients),
    Check("lse_gradients", "an lse whose cotangent is ignored", cases.with_lse(cases.plain), judges.gradients),
    Check("dropout_gradients", "a backward pass that drops other probabilities than the forward pass", cases.dropped, judges.gradients),
    Check("hidden_garbage_gradients", "gradients to or from keys that a mask hides", cases.with_garbage_hidden, judges.gradients),
    Check(
        "empty_rows_gradients",
        "gradients that are NaN or not 0 from rows with nothing allowed",
        cases.with_empty_rows,
        judges.empty_rows_gradients,
    ),
    Check("short_floats_gradients", "gradients summed in bfloat16 or float16", cases.in_short_floats, judges.gradients),
    Check("rerun", "a race: two runs that differ", cases.causal, judges.same_bits),
    Check("rerun_gradients", "a race in the backward pass, such as atomic sums", cases.causal, judges.same_bits_of_gradients),
    Check("jit", "a decision that is other when arrays are traced", cases.by_batch_row, judges.jit),
    Check("vmap", "a batching rule that mixes up axes", cases.stacked, judges.vmap),
    Check("vmap_of_gradients", "a batching rule of the backward pass that mixes up axes", cases.stacked, judges.vmap_of_gradients),
    Check("together", "features that do not go together", cases.together, judges.value),
    Check("together_gradients", "features whose gradients do not go together", cases.together, judges.gradients),
)
CHECKS = {check.name: check for check in _IN_ORDER}
