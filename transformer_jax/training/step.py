"""One training step, and several in one compiled call."""

from collections.abc import Callable
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from transformer_jax.training.objective import Batch, Objective
from transformer_jax.typing import Array

Metrics = dict[str, Array]
CORRUPTION = 2**31  # beyond the parts of any batch, which are counted from 0
MakesOptimizer: TypeAlias = "optax.GradientTransformation | Callable[[Any], optax.GradientTransformation]"


class TrainState(struct.PyTreeNode):
    """Everything that a step changes.

    Attributes:
        step: steps done, a scalar.
        params: of the model.
        opt_state: the optimizer's.
    """

    step: Array
    params: Any
    opt_state: Any


def init_state(model: nn.Module, optimizer: MakesOptimizer, key: Array, *inputs: Array) -> TrainState:
    """A state with fresh parameters, made by one compiled call. `optimizer` is one of optax, or makes one for given parameters; `inputs` are the model's."""

    def make(key: Array) -> TrainState:
        params = model.init(key, *inputs)["params"]
        return TrainState(jnp.int32(0), params, _transformation(optimizer, params).init(params))

    return jax.jit(make)(key)


def train_step(
    model: nn.Module, objective: Objective, optimizer: MakesOptimizer, accumulate: int = 1
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
    """The function of one step, not compiled: (state, batch, key of the dropout stream) -> (state, metrics).

    Args:
        model: with `training=True`.
        objective: what is minimised.
        optimizer: one of optax, or a function that makes one for given parameters, so that it can choose among them.
        accumulate: the batch is taken in so many parts, whose gradients are summed; the batch must be a multiple of it.

    Returns:
        A function whose metrics are "loss" (nats), "accuracy", "grad_norm" and those of the objective's sums, float32 scalars.
    """

    def gradient(params: Any, batch: Batch, key: Array) -> tuple[Any, Any]:
        def loss(params: Any) -> Any:
            sums = objective(model, {"params": params}, batch, {"dropout": key, "corruption": jax.random.fold_in(key, CORRUPTION)})
            return sums.total, sums

        grads, sums = jax.grad(loss, has_aux=True)(params)
        return grads, sums

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, state.step)
        if accumulate == 1:
            grads, sums = gradient(state.params, batch, key)
        else:
            parts = jax.tree.map(lambda a: a.reshape(accumulate, -1, *a.shape[1:]), batch)

            def add(so_far: Any, part: Any) -> tuple[Any, None]:
                n, piece = part
                return jax.tree.map(jnp.add, so_far, gradient(state.params, piece, jax.random.fold_in(key, n))), None

            shape = jax.eval_shape(gradient, state.params, jax.tree.map(lambda a: a[0], parts), key)
            zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shape)
            (grads, sums), _ = jax.lax.scan(add, zeros, (jnp.arange(accumulate), parts))
        count = jnp.maximum(sums.weight, 1)
        grads = jax.tree.map(lambda g: g / count.astype(g.dtype), grads)
        updates, opt_state = _transformation(optimizer, state.params).update(grads, state.opt_state, state.params)
        metrics = {"loss": sums.nll / count, "accuracy": sums.correct / count, "grad_norm": optax.tree.norm(grads)}
        metrics |= {name: a / count for name, a in getattr(sums, "metrics", {}).items()}  # an objective of one's own may have none
        return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state), metrics

    return step


def _transformation(optimizer: MakesOptimizer, params: Any) -> optax.GradientTransformation:
    if isinstance(optimizer, optax.GradientTransformation):
        return optimizer
    if not callable(optimizer):
        way_out = "an Optimizer config's is functools.partial(AdamW().make, schedule)"
        raise TypeError(f"optimizer: expected optax's, or a function that makes one for given parameters, received {optimizer!r}; {way_out}")
    return optimizer(params)


def several_steps(step: Callable[..., tuple[TrainState, Metrics]]) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
    """Steps over the leading axis of the batches in one compiled call; the state is donated, metrics are stacked.

    However many steps a call makes, no bit of the result changes. On CPU it saves the page faults of allocating temporaries anew for each.
    """

    def steps(state: TrainState, batches: Batch, key: Array) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(lambda state, batch: step(state, batch, key), state, batches)

    return jax.jit(steps, donate_argnums=0)
