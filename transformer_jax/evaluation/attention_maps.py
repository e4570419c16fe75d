"""Where attention looks."""

import re
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict

from transformer_jax.config import Config
from transformer_jax.layers.stack import Group
from transformer_jax.models import ModelConfig
from transformer_jax.typing import Array


class Place(NamedTuple):
    """Where in a model a layer is.

    Attributes:
        stack: the name of its stack.
        layer: the repetition that it is in, counted through the groups of the stack.
        kind: its config's class.
    """

    stack: str
    layer: int
    kind: type[Config]


def attention_probabilities(model: Any, variables: Any, *inputs: Array, **options: Any) -> dict[str, Array]:
    """Every attention's probabilities in a call, `[B, N, T, S]`, by the path of the module in the unstacked model, in order of depth.

    Args:
        model: in either layout; its backend is taken to be `reference`, which alone holds probabilities.
        variables: `{"params": ...}`.
        inputs: those of the model's call: tokens, or source and target.
        options: of the call.

    Returns:
        Names such as "decoder/groups_0/layers_3/sublayers_1/layer"; a group that is shared has one for each repetition too. Empty where nothing attends.
    """
    _, state = model.clone(backend="reference").apply(variables, *inputs, mutable=["intermediates"], **options)
    found: dict[str, Array] = {}
    for name, stack in model.config.stacks().items():
        for n, group in enumerate(stack.groups):
            taps = state["intermediates"][name][f"groups_{n}"]
            for layer in range(group.repeat):
                inside = _of_repetition(taps, group, layer, model.stacked)
                found |= {f"{name}/groups_{n}/layers_{layer}/{path}": inside[path] for path in sorted(inside, key=_in_numbers)}
    return found


def _of_repetition(taps: Any, group: Group, layer: int, stacked: bool) -> dict[str, Array]:
    own = not (stacked or group.share)
    flat = flatten_dict(taps[f"layers_{layer}" if own else "layers"], sep="/")
    sown = {path.removesuffix("/probabilities"): a for path, a in flat.items() if path.endswith("/probabilities")}
    # One array with all layers, or one an application: all of one layer's, or the one of each layer.
    return {path: a[0][layer] if stacked else a[0 if own else layer] for path, a in sown.items()}


def _in_numbers(path: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]


def place_of(config: ModelConfig, path: str) -> Place:
    """Where a path of `attention_probabilities` leads: modules bear the names of the config's fields that they are made from."""
    stack_name, group_name, layer_name, *inside = path.split("/")
    stack = config.stacks()[stack_name]
    n, layer = (int(name.rpartition("_")[2]) for name in (group_name, layer_name))
    part: Any = stack.groups[n]
    for name in inside:
        field, _, index = name.rpartition("_")
        part = getattr(part, field)[int(index)] if hasattr(part, field) else getattr(part, name, part)
    return Place(stack_name, sum(group.repeat for group in stack.groups[:n]) + layer, type(part))
