"""What layers sow beside their output in training: losses of their own, and metrics."""

from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.typing import Array

SOWN = ("losses", "metrics")


def added_losses(state: Any) -> Array | None:
    """The sum of all that was sown into "losses", of every layer; None where nothing was."""
    sown = jax.tree.leaves(state.get("losses", {}))
    return sum((a.sum() for a in sown[1:]), sown[0].sum()) if sown else None


def router_metrics(state: Any) -> dict[str, Array]:
    """`router_load_max`: the largest share that any expert of any layer has of its layer's choices, times their number of experts, so 1 where all are even."""
    sown = jax.tree_util.tree_leaves_with_path(state.get("metrics", {}))
    # `[E]`, or `[L, E]` of scanned layers.
    loads = [load for path, load in sown if any(getattr(key, "key", None) == "expert_load" for key in path)]
    return {"router_load_max": jnp.stack([load.max() * load.shape[-1] for load in loads]).max()} if loads else {}
