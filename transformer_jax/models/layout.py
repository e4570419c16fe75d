"""The two layouts of a model's parameters: stacked on a layer axis, or one array a layer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.layers.stack import Group
from transformer_jax.models.base import ModelConfig

Variables = dict[str, Any]


def unstacked(model: Any, variables: Variables) -> tuple[Any, Variables]:
    """The same model with one array, and one cache, per layer: for decoding and for looking inside. No bit is changed.

    Args:
        model: with `stacked=True`.
        variables: its variables, or anything of the shape of `{"params": ...}`, such as an optimizer's moments.
    """
    if not model.stacked:
        raise ValueError("model: expected one that is stacked, received one that is not")

    def split(group: Group, params: Any) -> Any:
        layers = params["layers"]
        return {f"layers_{n}": jax.tree.map(lambda a, n=n: a[n], layers) for n in range(group.repeat)}

    return model.clone(stacked=False), _by_group(model.config, variables, split)


def stacked(model: Any, variables: Variables) -> tuple[Any, Variables]:
    """The reverse of `unstacked`."""
    if model.stacked:
        raise ValueError("model: expected one that is unstacked, received one that is not")

    def join(group: Group, params: Any) -> Any:
        layers = [params[f"layers_{n}"] for n in range(group.repeat)]
        return {"layers": jax.tree.map(lambda *each: jnp.stack(each), *layers)}

    return model.clone(stacked=True), _by_group(model.config, variables, join)


def _by_group(config: ModelConfig, variables: Variables, convert: Callable[[Group, Any], Any]) -> Variables:
    params = dict(variables["params"])
    for name, stack in config.stacks().items():
        params[name] = dict(params[name])
        for n, group in enumerate(stack.groups):
            if not group.share:
                params[name][f"groups_{n}"] = convert(group, params[name][f"groups_{n}"])
    return {**variables, "params": params}
