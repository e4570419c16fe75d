"""What a kind of model is given, in shapes alone."""

from typing import Any

import jax
import jax.numpy as jnp


def example_inputs(model: Any, batch: int, length: int) -> tuple[Any, ...]:
    """What `model.apply` takes after the variables, for `batch` sequences of `length` tokens."""
    return (jax.ShapeDtypeStruct((batch, length), jnp.int32),)


def example_batch(model: Any, batch: int, length: int) -> dict[str, Any]:
    """What an objective takes, for `batch` sequences of `length` predictions."""
    return {"tokens": jax.ShapeDtypeStruct((batch, length + 1), jnp.int32)}
