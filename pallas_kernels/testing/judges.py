"""What is asked of an attention function: each judge runs it on one call and raises an AssertionError that says what is wrong, and by how much."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import chex  # type: ignore[import-untyped]
import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.testing.calls import Call, mask_as_booleans
from pallas_kernels.testing.subject import Outputs, Subject, true_gradients, true_value


def value(fn: Subject, call: Call, times: float = 1) -> None:
    """o, and lse if wanted, are the reference's, in all rows with something allowed or a sink."""
    actual, expected = fn.value(call), true_value(call)
    _well_formed(call, actual)
    rows = _allowed(call) | (call.sinks is not None)
    wanted = {name: expected[name] for name in actual}
    _close(fn, call, _rows(actual, rows), _rows(wanted, rows), times=times)


def gradients(fn: Subject, call: Call) -> None:
    """The gradients of q, k, v, scores' arrays and sinks are the reference's, no cotangent coming from rows with nothing allowed."""
    _same_gradients(fn, call, _cotangents(call, _allowed(call)))


def empty_rows(fn: Subject, call: Call) -> None:
    """o is exactly 0 where nothing is allowed, and lse -inf or the sink's logit."""
    actual, expected = fn.value(call), true_value(call)
    zeros = _rows(actual, ~_allowed(call))["o"]
    _equal({"o of rows with nothing allowed": zeros}, {"o of rows with nothing allowed": np.zeros_like(zeros)})
    if call.return_lse:
        _equal(*({"lse = -inf": np.isneginf(outputs["lse"])} for outputs in (actual, expected)))
    value(fn, call)


def empty_rows_gradients(fn: Subject, call: Call) -> None:
    """Gradients are those of the reference, q's exactly 0 where nothing is allowed, whatever cotangent comes from there."""
    allowed = _allowed(call)
    actual = _same_gradients(fn, call, _cotangents(call, np.ones_like(allowed)))
    zeros = np.asarray(actual["gradient of q"])[~np.swapaxes(allowed, -1, -2)]
    _equal({"gradient of q in rows with nothing allowed": zeros}, {"gradient of q in rows with nothing allowed": np.zeros_like(zeros)})


def any_order_of_keys(fn: Subject, call: Call) -> None:
    """Keys, values and kv_positions permuted together: nothing changes."""
    order = np.random.default_rng(0).permutation(call.k.shape[-3])
    permuted = replace(call, k=call.k[..., order, :, :], v=call.v[..., order, :, :], kv_positions=call.kv_positions[order])
    _close(fn, call, fn.value(permuted), fn.value(call))


def same_bits(fn: Subject, call: Call) -> None:
    """A second run gives the same bits."""
    _equal(fn.value(call), fn.value(call))


def same_bits_of_gradients(fn: Subject, call: Call) -> None:
    """A second run gives the same bits in all gradients."""
    cotangents = _cotangents(call, _allowed(call))
    _equal(fn.gradients(call, cotangents), fn.gradients(call, cotangents))


def jit(fn: Subject, call: Call) -> None:
    """With and without jit the same: masks' arrays are traced in the one and known in the other."""
    _close(fn, call, fn.value_without_jit(call), fn.value(call))


def vmap(fn: Subject, stacked: Call) -> None:
    """vmap equals a loop. `stacked`: calls along the first axis of every array."""
    _close(fn, stacked, fn.value_by_vmap(stacked), _stack([fn.value(call) for call in _calls(stacked)]))


def vmap_of_gradients(fn: Subject, stacked: Call) -> None:
    """vmap of the gradients equals a loop."""
    calls = _calls(stacked)
    cotangents = [_cotangents(call, _allowed(call)) for call in calls]
    loop = [fn.gradients(call, given) for call, given in zip(calls, cotangents)]
    _close(fn, stacked, fn.gradients_by_vmap(stacked, _stack(cotangents)), _stack(loop), times=2)


def _well_formed(call: Call, outputs: Outputs) -> None:
    lead, (T, N), Hv = call.q.shape[:-3], call.q.shape[-3:-1], call.v.shape[-1]
    chex.assert_shape(outputs["o"], (*lead, T, N, Hv), custom_message="o")
    chex.assert_trees_all_equal_dtypes(outputs["o"], call.q, custom_message="o in q's dtype")
    if call.return_lse:
        chex.assert_shape(outputs["lse"], (*lead, N, T), custom_message="lse")
        chex.assert_trees_all_equal_dtypes(outputs["lse"], jnp.zeros((), jnp.float32), custom_message="lse in float32")


def _allowed(call: Call) -> np.ndarray:
    """Rows with something allowed, `[..., N, T]`."""
    rows = np.asarray(mask_as_booleans(call.q, call.k, call.mask, call.q_positions, call.kv_positions)).any(-1)
    return rows.reshape(*call.q.shape[:-3], *rows.shape[1:])


def _rows(outputs: Mapping[str, Any], rows: np.ndarray) -> Outputs:
    """Those rows `[..., N, T]` of each output."""
    where = {"o": np.swapaxes(rows, -1, -2), "lse": rows}
    return {name: np.asarray(array)[where[name]] for name, array in outputs.items()}


def _cotangents(call: Call, rows: np.ndarray) -> Outputs:
    """Normal numbers in `rows` `[..., N, T]`, elsewhere zeros."""
    rng = np.random.default_rng(0)
    lse = rng.normal(size=rows.shape) * rows
    o = rng.normal(size=(*call.q.shape[:-1], call.v.shape[-1])) * np.swapaxes(rows, -1, -2)[..., None]
    wanted = {"o": jnp.asarray(o, call.q.dtype), "lse": jnp.asarray(lse, jnp.float32)}
    return wanted if call.return_lse else {"o": wanted["o"]}


def _same_gradients(fn: Subject, call: Call, cotangents: Outputs) -> dict[str, Any]:
    actual = fn.gradients(call, cotangents)
    _close(fn, call, actual, true_gradients(call, cotangents), times=2)
    return actual


def _calls(stacked: Call) -> list[Call]:
    return [jax.tree.map(lambda a: a[n], stacked) for n in range(stacked.q.shape[0])]  # noqa: B023


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *trees)


def _close(fn: Subject, call: Call, actual: Any, expected: Any, times: float = 1) -> None:
    """Every array differs by no more than its dtype's share of its largest number, or of a tenth of the largest in all arrays.

    The tenth is for arrays that are nearly 0 throughout, such as the gradient of q where there is one key.
    """
    share = times * fn.tolerances[call.q.dtype.name]
    floor = 0.1 * max(_largest(array) for array in jax.tree.leaves(expected))
    _within(lambda true: share * max(_largest(true), floor), actual, expected)


def _equal(actual: Any, expected: Any) -> None:
    _within(lambda true: 0.0, actual, expected)


def _within(allowed: Callable[[Any], float], actual: Any, expected: Any) -> None:
    """Trees of the same structure whose arrays differ by no more than `allowed(expected array)`; NaN is never within."""

    def error(mine: Any, true: Any) -> float:
        return _largest(np.asarray(mine, np.float64) - np.asarray(true, np.float64))

    chex.assert_trees_all_equal_shapes(actual, expected)
    chex.assert_trees_all_equal_comparator(
        lambda mine, true: error(mine, true) <= allowed(true),
        lambda mine, true: f"largest error {error(mine, true):.2g}, allowed {allowed(true):.2g}",
        actual,
        expected,
    )


def _largest(array: Any) -> float:
    return float(np.abs(np.asarray(array, np.float64)).max(initial=0))
