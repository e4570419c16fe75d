"""The conformance kit passes what is right and catches what is wrong, each mistake by the check meant for it."""

import inspect
import re
import subprocess
import sys
import textwrap
import types
import unittest
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pallas_kernels.testing
from pallas_kernels import Dropout, attention, masks
from pallas_kernels.flash.functions import place
from pallas_kernels.flash.request import float_arrays, with_float_arrays
from pallas_kernels.testing import CHECKS, ConformanceError, check_attention, mask_as_booleans, strategies
from pallas_kernels.testing.choosing import Seeded, Space

TILE = 16
LENGTHS = ((5, 11), (23, 19))
reference = partial(attention, backend="reference")


@pytest.mark.slow
@pytest.mark.parametrize("of_gradients", [False, True], ids=["values", "gradients"])
def test_blockwise_passes(of_gradients: bool) -> None:
    checks = [name for name in CHECKS if ("gradients" in name) == of_gradients]
    report = check_attention(partial(attention, backend="blockwise"), checks=checks)
    assert [(r.passed, r.refusals, r.failures) for r in report.results] == [(20, (), ())] * len(checks)


# The checks that do more than compare with the reference.
NOT_BY_REFERENCE = [name for name in CHECKS if name.startswith(("empty_rows", "order_of_keys", "rerun", "jit", "vmap"))]


@pytest.mark.parametrize(("checks", "seeds"), [(NOT_BY_REFERENCE, 1), pytest.param(list(CHECKS), 20, marks=pytest.mark.slow)], ids=["not by itself", "all"])
def test_reference_passes(checks: list[str], seeds: int) -> None:
    report = check_attention(reference, checks=checks, seeds=seeds)
    assert [(r.passed, r.refusals, r.failures) for r in report.results] == [(seeds, (), ())] * len(checks)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"fn": None}, "fn: expected an attention function"),
        ({"seeds": 0}, "seeds: expected at least 1, received 0"),
        ({"checks": ()}, "checks: expected a sequence of names"),
        ({"checks": "masks"}, "checks: expected a sequence of names, or None for all, received 'masks'"),
        ({"checks": ["maskz"]}, "nearest: masks"),
        ({"lengths": (5, 11)}, "lengths: expected pairs of positive integers"),
        ({"heads": ((3, 2),)}, r"heads: expected pairs of N and K with N a multiple of K, received \(3, 2\)"),
        ({"head_dims": ((0, 7),)}, "head_dims: expected pairs of positive integers"),
        ({"tolerances": {"float31": 1e-3}}, "tolerances: expected a share between 0 and 1 for each of float32"),
    ],
)
def test_wrong_arguments_are_named(arguments: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        check_attention(**{"fn": reference, **arguments})


def jax_nn(q: Any, k: Any, v: Any, *, mask: Any = None, score: Any = (), q_positions: Any = None, kv_positions: Any = None, **options: Any) -> Any:
    """`jax.nn.dot_product_attention` as the kit calls it. In a row with nothing allowed it takes the mean of all values; its lse has no gradient."""
    refusals = {
        "takes H = Hv": q.shape[-1] != v.shape[-1],
        "takes no float16 on CPU": q.dtype == jnp.float16,
        "takes a bias and no other score": [one.function.name for one in score] not in ([], ["bias"]),
        "takes mask, bias, scale and return_lse": bool(options.keys() - {"scale", "return_lse"}),
    }
    for reason, refused in refusals.items():
        if refused:
            raise NotImplementedError(reason)
    allowed = mask_as_booleans(q, k, mask, q_positions, kv_positions)
    bias = score[0].function.named["array"] if score else None
    flat = (a.reshape(-1, *a.shape[-3:]) for a in (q, k, v))
    o, lse = jax.nn.dot_product_attention(*flat, bias, allowed, scale=options.get("scale"), return_residual=True)
    o, lse = o.reshape(q.shape), lse.swapaxes(-1, -2).reshape(*q.shape[:-3], q.shape[-2], q.shape[-3])
    return (o, lse) if "return_lse" in options else o


@pytest.mark.slow
def test_jax_nn_passes_what_it_can_but_for_empty_rows_and_the_gradient_of_lse() -> None:
    with pytest.raises(ConformanceError) as error:
        check_attention(jax_nn, seeds=2, lengths=LENGTHS)
    report = error.value.report
    assert report.failed == ("empty_rows", "lse_of_empty_rows", "lse_gradients", "empty_rows_gradients")
    assert set(report.refused) == {"head_dims"} | {name for name in CHECKS if re.search("sink|dropout|together", name)}
    passed = {r.name: r.passed for r in report.results}
    assert (passed["value"], passed["masks"], passed["lse"], passed["score_gradients"]) == (2, 2, 2, 1)


def mask_off_by_one(q: Any, k: Any, v: Any, *, mask: Any = None, q_positions: Any = None, kv_positions: Any = None, **options: Any) -> Any:
    if mask is not None:
        allowed = mask_as_booleans(q, k, mask, q_positions, kv_positions)
        mask = masks.dense(allowed | jnp.roll(allowed, 1, -1))
    return reference(q, k, v, mask=mask, q_positions=q_positions, kv_positions=kv_positions, **options)


def scale_forgotten(*arrays: Any, scale: Any = None, **options: Any) -> Any:
    return reference(*arrays, **options)


def last_tile_of_keys_dropped(q: Any, k: Any, v: Any, *, mask: Any = None, **options: Any) -> Any:
    S = k.shape[-3]
    whole = masks.lengths(np.full(int(np.prod(q.shape[:-3])), S // TILE * TILE or S))
    return reference(q, k, v, mask=whole if mask is None else mask & whole, **options)


def gradient_of_scores_not_summed_over_batch(q: Any, k: Any, v: Any, *, score: Any = (), **options: Any) -> Any:
    B, _, N, _ = q.reshape(-1, *q.shape[-3:]).shape
    sizes = {"B": B, "T": q.shape[-3], "S": k.shape[-3], "N": N}
    score = tuple(replace(one, function=place(one.function, sizes)) for one in score)

    def of_first_row(a: Any) -> Any:
        """The same numbers in each batch row, and a gradient from the first row alone."""
        return jnp.concatenate([a, *[jax.lax.stop_gradient(a)] * (B - 1)]) if a.shape[0] == 1 else a

    return reference(q, k, v, score=with_float_arrays(score, [of_first_row(a) for a in float_arrays(score)]), **options)


def other_dropout_in_the_backward_pass(*arrays: Any, dropout: Dropout | None = None, **options: Any) -> Any:
    if dropout is None:
        return reference(*arrays, **options)
    forward, backward = (reference(*arrays, dropout=Dropout(dropout.rate, dropout.seed + n), **options) for n in (0, 1))
    return jax.tree.map(lambda a, b: jax.lax.stop_gradient(a - b) + b, forward, backward)


def nan_in_empty_rows(*arrays: Any, return_lse: bool = False, **options: Any) -> Any:
    o, lse = reference(*arrays, return_lse=True, **options)
    o = jnp.where(jnp.isneginf(lse).swapaxes(-1, -2)[..., None], jnp.nan, o)
    return (o, lse) if return_lse else o


def lse_without_sink(*arrays: Any, return_lse: bool = False, sinks: Any = None, **options: Any) -> Any:
    o = reference(*arrays, sinks=sinks, **options)
    return (o, reference(*arrays, return_lse=True, **options)[1]) if return_lse else o


def heads_of_groups_swapped(q: Any, k: Any, v: Any, **options: Any) -> Any:
    """Query head n reads kv head n % K."""
    k, v = (jnp.concatenate([a] * (q.shape[-2] // k.shape[-2]), -2) for a in (k, v))
    return reference(q, k, v, **options)


# What fails: first the check meant for the mistake, then those that cannot do without the broken part.
BROKEN: dict[Callable[..., Any], tuple[str, ...]] = {
    scale_forgotten: ("scale",),
    heads_of_groups_swapped: ("grouped_heads", "tiles", "masks", "lse_with_sinks", "empty_rows", "score_gradients", "dropout_gradients"),
    last_tile_of_keys_dropped: ("tiles", "masks", "lse_with_sinks", "empty_rows", "score_gradients", "dropout_gradients"),
    mask_off_by_one: ("masks", "empty_rows"),
    lse_without_sink: ("lse_with_sinks",),
    nan_in_empty_rows: ("empty_rows",),
    gradient_of_scores_not_summed_over_batch: ("score_gradients",),
    other_dropout_in_the_backward_pass: ("dropout_gradients",),
}
MEANT = [failed[0] for failed in BROKEN.values()]


@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN, ids=lambda fn: fn.__name__)
def test_each_mistake_is_caught_by_the_check_meant_for_it(broken: Callable[..., Any]) -> None:
    with pytest.raises(ConformanceError) as error:
        check_attention(broken, checks=["value", *MEANT], seeds=2, lengths=LENGTHS)
    assert error.value.report.failed == BROKEN[broken]
    meant = BROKEN[broken][0]
    assert re.search(rf"^{meant}: \d of 2 cases failed. It is meant to find {re.escape(CHECKS[meant].finds)}", str(error.value), re.MULTILINE)


def test_a_failure_says_the_case_the_error_and_what_is_allowed() -> None:
    with pytest.raises(ConformanceError) as error:
        check_attention(scale_forgotten, checks=["scale", "value"], seeds=1)
    assert re.search(
        r"^1 of 2 checks failed.*^scale: 1 of 1 .*seed 0: float32 q \[2, 5, 3, 7\], k \[2, 11, 3, 7\], v \[2, 11, 3, 7\], scale=0\.7.*"
        r"'o': largest error 0\.\d+, allowed \S+e-05.*^value +1 +0 +0$.*^scale +0 +0 +1  FAILED$",
        str(error.value),
        re.MULTILINE | re.DOTALL,
    )


def test_whatever_a_function_raises_is_a_finding_and_the_others_go_on() -> None:
    def fn(q: Any, k: Any, v: Any, *, scale: float | None = None) -> Any:
        if scale is not None:
            raise ZeroDivisionError("scale\nmore")
        return reference(q, k, v)

    with pytest.raises(ConformanceError, match=r"(?m)seed 0.*\n  ZeroDivisionError: scale$") as error:
        check_attention(fn, checks=["scale", "value", "sinks", "grouped_heads"], seeds=1)
    report = error.value.report
    assert (report.failed, report.refused, [r.name for r in report.results if r.passed]) == (("scale",), ("sinks",), ["value", "grouped_heads"])
    assert "all refused: has no argument sinks" in str(report)


def test_a_function_that_refuses_everything_does_not_pass() -> None:
    def fn(*arrays: Any, **options: Any) -> Any:
        raise NotImplementedError("not today")

    with pytest.raises(ConformanceError, match=r"^nothing was checked") as error:
        check_attention(fn, checks=["value", "masks"], seeds=2)
    assert error.value.report.refused == ("value", "masks")
    assert "all refused: not today" in str(error.value)


def test_wrong_shapes_and_dtypes_are_caught() -> None:
    def without_batch(*arrays: Any, **options: Any) -> Any:
        return reference(*arrays, **options)[:1]

    def in_float32(*arrays: Any, **options: Any) -> Any:
        return reference(*arrays, **options).astype(jnp.float32)

    for fn, name in ((without_batch, "value"), (in_float32, "short_floats")):
        with pytest.raises(ConformanceError):
            check_attention(fn, checks=[name], seeds=1, lengths=LENGTHS)


def test_an_unknown_check_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"received 'mask' \(nearest: masks\)"):
        check_attention(reference, checks=["mask"])


@given(st.data())
def test_masks_allow_what_numpy_says(data: Any) -> None:
    sizes = data.draw(strategies.sizes())
    some = [st.none() | strategies.positions(sizes.B, length) for length in (sizes.T, sizes.S)]
    q_positions, kv_positions = map(data.draw, some)
    mask, allowed = data.draw(strategies.masks(sizes, q_positions, kv_positions))
    q, k = (np.zeros((*sizes.lead, length, heads, 1), "float32") for length, heads in ((sizes.T, sizes.N), (sizes.S, sizes.K)))
    np.testing.assert_array_equal(mask_as_booleans(q, k, mask, q_positions, kv_positions), allowed)


@given(strategies.calls(longest=5))
def test_calls_are_calls_of_attention(call: Any) -> None:
    o, lse = jax.eval_shape(lambda call: attention(call.q, call.k, call.v, **call.options), call)
    assert o.shape == (*call.q.shape[:-1], call.v.shape[-1]) and lse.shape == (*call.q.shape[:-3], *call.q.shape[-2:-4:-1])


@given(st.data())
def test_scores_fit_the_sizes_that_they_were_made_for(data: Any) -> None:
    sizes = data.draw(strategies.sizes(longest=5))
    q, k = (jnp.zeros((*sizes.lead, *shape), "float32") for shape in ((sizes.T, sizes.N, 1), (sizes.S, sizes.K, 1)))
    jax.eval_shape(partial(attention, score=data.draw(strategies.scores(sizes))), q, k, k)


def test_seeds_see_all_kinds_and_make_the_same_case_again() -> None:
    def cases(name: str) -> list[str]:
        check = CHECKS[name]
        return [str(check.case(Seeded(seed), check.space(Space()))) for seed in range(20)]

    assert cases("masks") == cases("masks")
    kinds = {"masks": "causal sliding_window segments prefix kv_lengths valid dense block_sparse dilated band ahead", "scores": "bias softcap alibi looked_up"}
    for name, words in kinds.items():
        assert [word for word in words.split() if not any(word in case for case in cases(name))] == []


def test_attention_alone_needs_no_testing_tools() -> None:
    subprocess.run([sys.executable, "-c", "import pallas_kernels, sys; assert not {'chex', 'hypothesis'} & set(sys.modules)"], check=True)


@pytest.mark.slow
def test_the_example_of_the_docstring_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_kernels", types.SimpleNamespace(my_attention=reference))
    text = inspect.getdoc(pallas_kernels.testing) or ""
    example: dict[str, Any] = {"__name__": "example"}
    exec(textwrap.dedent(text[text.index("    import chex") :]), example)
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(example["MyAttentionTest"]).run(result)
    assert (result.testsRun, result.errors, result.failures) == (4, [], [])
