"""Looking inside a model."""

from typing import Any

import jax.numpy as jnp

from transformer_jax.typing import Array, Tokens


def residual_stream(model: Any, variables: Any, *tokens: Tokens, stack: str = "", **options: Any) -> Array:
    """The residual stream after each repetition of each group, `[L, B, T, D]`, first layer first.

    Args:
        model: in either layout.
        variables: `{"params": ...}`.
        tokens: `[B, T]`; source and target of an encoder-decoder.
        stack: "encoder" or "decoder", of an encoder-decoder; the decoder's unless given.
        options: those of the model's call.

    Raises:
        ValueError: a stack that the model has not.
    """
    stacks = model.config.stacks()
    name = stack or list(stacks)[-1]
    if name not in stacks:
        raise ValueError(f"stack: expected one of {', '.join(stacks)}, received {stack!r}")
    _, state = model.apply(variables, *tokens, mutable=["intermediates"], **options)
    taps = state["intermediates"][name]
    layers: list[Array] = []
    for n, group in enumerate(stacks[name].groups):
        mine = taps[f"groups_{n}"]
        if model.stacked:  # one tap with all the layers
            layers += mine["layers"]["residual"]
            continue
        # One tap a repetition: all of one layer's, or the one of each layer.
        each = mine["layers"]["residual"] if group.share else [mine[f"layers_{layer}"]["residual"][0] for layer in range(group.repeat)]
        layers += [x[None] for x in each]
    return jnp.concatenate(layers)
