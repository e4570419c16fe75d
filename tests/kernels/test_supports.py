"""Where a backend says that it takes a call it gives what the reference gives, and where it says why not it refuses with those words."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import attention, explain
from pallas_kernels.testing import Call, strategies

BACKENDS = ["reference", "blockwise", "tpu"]


def value_and_gradients(call: Call, **how: Any) -> Any:
    def run(inputs: dict[str, Any]) -> Any:
        c = call.with_inputs(inputs)
        return attention(c.q, c.k, c.v, **c.options, **how)

    (o, lse), back = jax.vjp(run, call.inputs)
    empty = jnp.isneginf(lse)
    return (o, jnp.where(empty, 0, lse), empty), back((jnp.cos(o), jnp.where(empty, 0, jnp.cos(lse))))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=settings.default.max_examples // 2)
@given(st.data())
def test_takes_or_refuses_as_explained(backend: str, close: Any, data: Any) -> None:
    call = data.draw(strategies.calls()).astype(data.draw(st.sampled_from(["float32", "float32", "bfloat16", "float16"])))
    if data.draw(st.sampled_from([False] * 5 + [True])):
        call = Call(call.q[..., :0, :, :], call.k, call.v, return_lse=True)
    tile = data.draw(st.sampled_from([None, None, (128, 128), (8, 5)]))
    options = {name: value for name, value in call.options.items() if name != "return_lse"}
    reason = dict(explain(call.q, call.k, call.v, **options, tile=tile, platform="tpu").reasons)[backend]
    how = {"backend": backend, "tile": tile}
    if reason is not None:
        with pytest.raises(NotImplementedError, match=re.escape(f"backend {backend!r}: {reason}")):
            jax.eval_shape(partial(value_and_gradients, **how), call)
        return
    with jax.default_matmul_precision("highest"):
        values, gradients = jax.jit(partial(value_and_gradients, **how))(call)
        expected, wanted = jax.jit(partial(value_and_gradients, backend="reference"))(call.astype(jnp.float32))
    np.testing.assert_array_equal(values[2], expected[2])
    if call.q.size:
        dtype = call.q.dtype  # lse and the gradients of scores' arrays are no more exact than the products they come from
        close(jax.tree.map(lambda a: a.astype(dtype), (values[:2], gradients)), (expected[:2], wanted), times=4)
