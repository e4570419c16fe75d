"""Arguments of `attention`, what it says of wrong ones, and `explain`."""

import re
from functools import partial
from types import ModuleType
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels import Dropout, attention, explain, masks, scores
from pallas_kernels.flash import backends

Q, K, V = (np.zeros(shape, "float32") for shape in [(2, 5, 6, 3), (2, 7, 3, 3), (2, 7, 3, 4)])


def test_exports() -> None:
    assert set(pallas_kernels.__all__) <= set(dir(pallas_kernels))
    assert isinstance(masks, ModuleType) and isinstance(scores, ModuleType)
    for module in (masks, scores):
        assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"q": [[1.0]]}, TypeError, "q: expected an array, received list"),
        ({"q": np.zeros(Q.shape, int)}, TypeError, "q: expected floats, received int"),
        ({"v": np.zeros(V.shape, bool)}, TypeError, "v: expected floats, received bool"),
        ({"q": np.zeros((5, 3), "float32")}, ValueError, r"q: expected shape \[..., length, heads, features\], received \(5, 3\)"),
        ({"k": K.astype("float16")}, TypeError, "k: expected q's dtype float32, received float16"),
        ({"v": V.astype("float16")}, TypeError, "v: expected q's dtype float32, received float16"),
        ({"k": K[:1]}, ValueError, r"k: expected q's leading dimensions \(2,\), received \(1,\) in shape \(1, 7, 3, 3\)"),
        ({"v": V[0]}, ValueError, r"v: expected q's leading dimensions \(2,\), received \(\)"),
        ({"v": V[:, :6]}, ValueError, r"v: expected k's \[S, K\] = \(7, 3\), received \(6, 3\)"),
        ({"v": V[:, :, :1]}, ValueError, r"v: expected k's \[S, K\] = \(7, 3\), received \(7, 1\)"),
        ({"k": K[..., :2]}, ValueError, "k: expected q's head dimension 3, received 2"),
        ({"q": Q[:, :, :5]}, ValueError, "q: expected a number of heads that is a multiple of k's 3, received 5"),
        ({"k": K[:, :, :0], "v": V[:, :, :0]}, ValueError, "q: expected a number of heads that is a multiple of k's 0, received 6"),
        ({"mask": 3}, TypeError, "mask: expected a mask, a boolean array, a function or None, received int"),
        ({"mask": np.ones((5, 7))}, TypeError, "dense: array: expected booleans, received float"),
        ({"mask": (masks.causal(), masks.causal())}, TypeError, "mask: expected a mask, .* received tuple"),
        ({"score": 3.0}, TypeError, "score: expected scores, functions or None, received float"),
        ({"score": (scores.softcap(2), "alibi")}, TypeError, "score: expected scores, functions or None, received str"),
        ({"score": masks.causal()}, TypeError, "score: expected scores, functions or None, received Leaf"),
        ({"scale": "0.5"}, TypeError, "scale: expected a Python number, received str"),
        ({"scale": jnp.float32(0.5)}, TypeError, "scale: expected a Python number, received .*; multiply q by a learned scale instead"),
        ({"sinks": np.zeros(3, "float32")}, ValueError, r"sinks: expected floats of shape \(6,\), one for each query head, received float32 \(3,\)"),
        ({"sinks": np.zeros((2, 6), "float32")}, ValueError, r"sinks: expected floats of shape \(6,\), .* received float32 \(2, 6\)"),
        ({"sinks": np.zeros(6, "int32")}, ValueError, r"sinks: expected floats of shape \(6,\), .* received int32 \(6,\)"),
        ({"dropout": 0.1}, TypeError, r"dropout: expected Dropout\(rate, seed\), received float"),
        ({"dropout": Dropout(1.0)}, ValueError, r"dropout: rate: expected a number in \[0, 1\), received 1.0"),
        ({"dropout": Dropout(-0.1)}, ValueError, r"dropout: rate: expected a number in \[0, 1\), received -0.1"),
        ({"dropout": Dropout(float("nan"))}, ValueError, r"dropout: rate: expected a number in \[0, 1\), received nan"),
        ({"dropout": Dropout("0.1")}, ValueError, r"dropout: rate: expected a number in \[0, 1\), received '0.1'"),
        ({"dropout": Dropout(0.1, 0.5)}, TypeError, r"dropout: seed: expected one integer, received float\d+ \(\)"),
        ({"dropout": Dropout(0.1, True)}, TypeError, r"dropout: seed: expected one integer, received bool"),
        ({"dropout": Dropout(0.1, np.arange(2, dtype="int32"))}, TypeError, r"dropout: seed: expected one integer, received int32 \(2,\)"),
        ({"q_positions": np.arange(5.0)}, TypeError, "q_positions: expected integers, received float"),
        ({"kv_positions": np.ones(7, bool)}, TypeError, "kv_positions: expected integers, received bool"),
        ({"q_positions": np.arange(7)}, ValueError, r"q_positions: expected shape \(5,\) or \(2, 5\), received \(7,\)"),
        ({"kv_positions": np.zeros((3, 7), int)}, ValueError, r"kv_positions: expected shape \(7,\) or \(2, 7\), received \(3, 7\)"),
        ({"backend": "blockwize"}, ValueError, r"expected one of auto, blockwise, reference, hopper, triton, tpu, received 'blockwize' \(nearest: blockwise\)"),
        ({"scale": float("nan")}, ValueError, "scale: expected a finite number, received nan"),
        ({"scale": True}, TypeError, "scale: expected a Python number, received bool"),
        ({"tile": (True, 1)}, ValueError, "tile: expected two positive integers"),
        ({"tile": 128}, ValueError, "tile: expected two positive integers, queries and keys to a tile, received 128"),
        ({"backend": "x"}, ValueError, "backend: expected one of auto, .*, received 'x'(?! .nearest)"),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_expected_and_what_came(change: Any, error: type[Exception], words: str) -> None:
    arguments = {"q": Q, "k": K, "v": V, **change}
    for wrap in (lambda f: f, jax.eval_shape):
        with pytest.raises(error, match=words):
            wrap(partial(attention, **arguments))()
    if "backend" not in change:
        with pytest.raises(error, match=words):
            explain(**arguments)


def test_lists_serve_as_positions_and_a_number_of_numpy_as_scale() -> None:
    """Keys at positions 6 to 0: query t sees the last t + 1 of them."""
    call = jax.jit(partial(attention, mask=masks.causal(), kv_positions=[6, 5, 4, 3, 2, 1, 0], q_positions=[[0, 1, 2, 3, 4]], scale=np.float32(0.5)))
    v = np.broadcast_to(np.arange(7.0, dtype="float32")[:, None, None], V.shape)
    np.testing.assert_allclose(call(Q, K, v)[0, :, 0, 0], [6, 5.5, 5, 4.5, 4], rtol=1e-6)


@pytest.mark.parametrize(("lead", "shape"), [((), (7,)), ((), (1, 7)), ((2, 3), (7,)), ((2, 3), (6, 7)), ((2, 3), (1, 7))])
def test_shapes_of_positions(lead: tuple[int, ...], shape: tuple[int, ...]) -> None:
    q, k = jnp.zeros((*lead, 5, 1, 2)), jnp.zeros((*lead, 7, 1, 2))
    assert jax.eval_shape(partial(attention, kv_positions=np.zeros(shape, int)), q, k, k).shape == (*lead, 5, 1, 2)


def test_explain_tells_every_backend_in_order_with_its_reason() -> None:
    told = explain(Q, K, V, mask=masks.causal())
    assert told.chosen == "blockwise" and told.platform == "cpu"
    assert [name for name, _ in told.reasons] == [backends.name(b) for b in backends.ORDER["cpu"]]
    assert str(told) == repr(told) == "attention on cpu:\n  blockwise  chosen\n  reference  could"
    for platform in ("gpu", "tpu", "cuda", "rocm"):
        assert str(explain(Q, K, V, platform=platform)).startswith(f"attention on {platform}:\n")
    with pytest.raises(ValueError, match="platform: expected one of cpu, gpu, tpu, received 'npu'"):
        explain(Q, K, V, platform="npu")


@pytest.mark.parametrize("platform", backends.ORDER)
@pytest.mark.parametrize(
    "options",
    [
        {"score": scores.softcap(3.0)},
        {"sinks": np.zeros(6, "float32")},
        {"dropout": Dropout(0.5)},
        {"mask": masks.causal(), "q_positions": np.arange(5)},
        {"q": Q[:0], "k": K[:0], "v": V[:0]},
    ],
    ids=["score", "sinks", "dropout", "mask", "empty"],
)
def test_a_named_backend_that_refuses_raises_with_the_reason_explain_gives(options: Any, platform: str) -> None:
    arguments = {"q": Q, "k": K, "v": V, **options}
    told = explain(**arguments, platform=platform)
    taken = [name for name, reason in told.reasons if reason is None]
    assert told.chosen == taken[0]
    for name, reason in told.reasons:
        if reason is None:
            assert jax.eval_shape(partial(attention, **arguments, backend=name)).shape == (*arguments["q"].shape[:-1], 4)
            continue
        assert f"{name}  {reason}" in re.sub(" {2,}", "  ", str(told))
        with pytest.raises(NotImplementedError, match=f"backend '{name}': {re.escape(reason)}"):
            attention(**arguments, backend=name)


def test_auto_takes_the_first_that_accepts() -> None:
    first, second, third = (mock.Mock(spec=["__name__", "supports", "forward"]) for _ in range(3))
    for fake, name, reason in ((first, "a.first", "is shy"), (second, "a.second", None), (third, "a.third", None)):
        fake.__name__, fake.supports.return_value = name, reason
        fake.forward.return_value = jnp.zeros((2, 5, 6, 4), "float32"), jnp.zeros((2, 6, 5), "float32")
    with mock.patch.dict(backends.ORDER, {"cpu": (first, second, third)}):
        assert str(explain(Q, K, V)) == "attention on cpu:\n  first   is shy\n  second  chosen\n  third   could"
        attention(Q, K, V)
        with pytest.raises(NotImplementedError, match="backend 'first': is shy"):
            attention(Q, K, V, backend="first")
        attention(Q, K, V, backend="third")
    assert [fake.forward.call_count for fake in (first, second, third)] == [0, 1, 1]


def test_forward_mode_is_refused_by_a_backend_with_its_own_backward_pass() -> None:
    """And not silently wrong; the docstring sends one to the reference."""
    q = jnp.asarray(Q)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jit(lambda q: jax.jvp(partial(attention, backend="blockwise"), (q, q, q), (q, q, q)))(q)
