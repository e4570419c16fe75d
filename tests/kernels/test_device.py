"""On a machine with an accelerator (`pytest -m device -n 0`): the backends that `auto` would choose from there pass the kit, compiled and not interpreted."""

from functools import partial

import jax
import numpy as np
import pytest

from pallas_kernels import attention, explain
from pallas_kernels.testing import check_attention

Q = np.ones((1, 256, 2, 64), np.float32)

DTYPES = {"hopper": ("bfloat16", "float16"), "triton": ("float32", "bfloat16", "float16")}


@pytest.mark.device
@pytest.mark.parametrize("backend", ["reference", "blockwise", "tpu", "hopper", "triton"])
def test_passes_on_the_device(backend: str) -> None:
    assert jax.default_backend() != "cpu", "there is no accelerator here"
    reasons = dict(explain(Q, Q, Q).reasons)
    if backend not in reasons:
        pytest.skip(f"{backend} is no backend of {jax.default_backend()}")
    report = check_attention(partial(attention, backend=backend), lengths=((5, 11), (700, 650)), dtypes=DTYPES.get(backend, ("float32",)))
    assert all(result.passed for result in report.results)
