"""A step against one written by hand with optax, and what it must not depend on."""

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transformer_jax.layers import Attention, Causal, Dense, Group, LayerNorm, Residual, Rope, Stack
from transformer_jax.models import DecoderOnly, DecoderOnlyConfig
from transformer_jax.precision import Precision
from transformer_jax.training import SGD, AdamW, NextToken, TrainState, WarmupCosine, several_steps, train_step

V, D, T, B = 19, 12, 11, 6
EXACT = Precision("float64", compute="float64")


def model(dropout: float = 0.0, **fields: Any) -> DecoderOnly:
    attention = Residual(Attention(3, mask=Causal(), position=Rope()), dropout=dropout)
    mlp = Residual(Dense(17), pre=LayerNorm())
    config = DecoderOnlyConfig(V, d_model=D, max_length=T, stack=Stack((Group(2, (attention, mlp)),)))
    return config.make(training=True, **fields)


def tokens(*shape: int, seed: int = 0, ignored: float = 0.0) -> jax.Array:
    """Tokens, of which some are to be ignored; the first examples have more of those than the last ones."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(V, size=shape)
    rate = ignored * np.linspace(2, 0, shape[-2])[:, None]
    return jnp.asarray(np.where(rng.random(shape) < rate, -1, drawn), jnp.int32)


def floats(tree: Any) -> list[jax.Array]:
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]


def maker(optimizer: Any) -> Callable[[Any], optax.GradientTransformation]:
    return partial(optimizer.make, WarmupCosine(3).make(optimizer.learning_rate, 20))


@pytest.fixture
def start(filled: Callable[..., Any]) -> Callable[..., Any]:
    """`start(module, optimizer)`: a state with random parameters, and what makes the optimizer. Compiles nothing."""

    def make(module: DecoderOnly, optimizer: Any) -> tuple[TrainState, Callable[..., Any]]:
        params = filled(module, jnp.zeros((1, T), jnp.int32))["params"]
        return TrainState(jnp.int32(0), params, maker(optimizer)(params).init(params)), maker(optimizer)

    return make


@pytest.mark.usefixtures("quick")
def test_a_step_is_that_of_optax_by_hand(start: Callable[..., Any], close: Callable[..., None]) -> None:
    with jax.enable_x64(True):
        module = model(precision=EXACT)
        state, make = start(module, AdamW(0.03, weight_decay=0.2))
        step = jax.jit(train_step(module, NextToken(), make))
        decayed = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in ("kernel", "embedding"), state.params)
        rate = optax.warmup_cosine_decay_schedule(0.03 / 4, 0.03, 3, 20, 0.003)
        rule = optax.adamw(rate, 0.9, 0.99, weight_decay=0.2, mask=decayed)

        def loss(params: Any, batch: jax.Array) -> jax.Array:
            logits = module.apply({"params": params}, batch[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()

        @jax.jit
        def by_hand(params: Any, opt_state: Any, batch: jax.Array) -> Any:
            value, grads = jax.value_and_grad(loss)(params, batch)
            norm = jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
            clipped = jax.tree.map(lambda g: g * jnp.minimum(1, 1 / norm), grads)
            updates, opt_state = rule.update(clipped, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, value, norm

        params, opt_state, norms = state.params, rule.init(state.params), []
        for n in range(4):
            batch = tokens(B, T + 1, seed=n)
            state, metrics = step(state, {"tokens": batch}, jax.random.key(7))
            params, opt_state, value, norm = by_hand(params, opt_state, batch)
            close({name: metrics[name] for name in ("loss", "grad_norm")}, {"loss": value, "grad_norm": norm})
            norms.append(float(norm))
        assert int(state.step) == 4 and max(norms) > 1  # so clipping had something to do
        close(state.params, params)
        close(floats(state.opt_state[1]), floats(opt_state))


@pytest.mark.usefixtures("quick")
def test_a_batch_in_parts_is_the_whole_batch_however_its_labels_are_spread(start: Callable[..., Any], close: Callable[..., None]) -> None:
    with jax.enable_x64(True):
        module = model(precision=EXACT)
        state, make = start(module, AdamW(0.03))
        batch = tokens(B, T + 1, ignored=0.4)
        whole, expected = jax.jit(train_step(module, NextToken(), make))(state, {"tokens": batch}, jax.random.key(7))
        for parts in (3, 6):
            counts = np.asarray((batch[:, 1:] >= 0).reshape(parts, -1).sum(1))
            assert len(set(counts)) >= 3, counts
            accumulated, metrics = jax.jit(train_step(module, NextToken(), make, accumulate=parts))(state, {"tokens": batch}, jax.random.key(7))
            close(metrics, expected)
            close((accumulated.params, floats(accumulated.opt_state)), (whole.params, floats(whole.opt_state)))


@pytest.mark.usefixtures("quick")
def test_loss_and_accuracy_are_means_over_the_labels_that_count(start: Callable[..., Any]) -> None:
    module = model()
    state, make = start(module, SGD())
    batch = tokens(B, T + 1, ignored=0.4)
    _, metrics = jax.jit(train_step(module, NextToken(label_smoothing=0.2, z_loss=0.1), make))(state, {"tokens": batch}, jax.random.key(7))
    logits = jax.jit(module.apply)({"params": state.params}, jnp.maximum(batch[:, :-1], 0))
    count, labels = batch[:, 1:] >= 0, jnp.maximum(batch[:, 1:], 0)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0]
    np.testing.assert_allclose(metrics["loss"], nll[count].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (logits.argmax(-1) == labels)[count].mean(), rtol=1e-6)


@pytest.mark.usefixtures("quick")
def test_a_batch_without_any_label_changes_no_parameter_and_gives_no_nan(start: Callable[..., Any]) -> None:
    module = model()
    state, make = start(module, SGD(momentum=0.0))
    batch = jnp.full((B, T + 1), -1, jnp.int32)
    after, metrics = jax.jit(train_step(module, NextToken(), make))(state, {"tokens": batch}, jax.random.key(7))
    chex.assert_trees_all_equal(after.params, state.params)
    assert all(float(value) == 0 for value in metrics.values())


@pytest.mark.slow
def test_however_many_steps_a_call_makes_no_bit_changes(start: Callable[..., Any]) -> None:
    module = model(dropout=0.3)
    batches, ends = tokens(10, B, T + 1), []
    for count in (1, 2, 5):
        state, make = start(module, AdamW(0.03))
        steps, metrics = several_steps(train_step(module, NextToken(), make)), []
        for n in range(0, 10, count):
            state, values = steps(state, {"tokens": batches[n : n + count]}, jax.random.key(7))
            metrics.append(values)
        ends.append((state, jax.tree.map(lambda *a: jnp.concatenate(a), *metrics)))
    assert ends[0][1]["loss"].shape == (10,) and int(ends[0][0].step) == 10
    for end in ends[1:]:
        chex.assert_trees_all_equal(end, ends[0])


@pytest.mark.usefixtures("quick")
def test_each_step_draws_dropout_of_its_own_from_the_key_and_the_step_alone(start: Callable[..., Any]) -> None:
    module = model(dropout=0.5)
    state, make = start(module, SGD(1e-9, momentum=0.0))
    step = jax.jit(train_step(module, NextToken(), make))
    batch = {"tokens": tokens(B, T + 1)}
    _, first = step(state, batch, jax.random.key(7))
    _, second = step(state.replace(step=state.step + 1), batch, jax.random.key(7))
    _, again = step(state, batch, jax.random.key(7))
    _, other = step(state, batch, jax.random.key(8))
    assert first["loss"] == again["loss"]
    assert len({float(m["loss"]) for m in (first, second, other)}) == 3


@pytest.mark.usefixtures("quick")
def test_the_parts_of_a_batch_draw_dropout_of_their_own(start: Callable[..., Any]) -> None:
    module = model(dropout=0.5)
    state, make = start(module, SGD(1e-9, momentum=0.0))
    half = tokens(B // 2, T + 1)
    step = jax.jit(train_step(module, NextToken(), make, accumulate=2))
    _, twice = step(state, {"tokens": jnp.concatenate([half, half])}, jax.random.key(7))
    _, again = step(state, {"tokens": jnp.concatenate([half, half])}, jax.random.key(7))
    assert twice["loss"] == again["loss"]
    key = jax.random.fold_in(jax.random.key(7), 0)
    part = jax.jit(lambda key: NextToken()(module, {"params": state.params}, {"tokens": half}, {"dropout": key}))
    parts = [part(jax.random.fold_in(key, n)) for n in range(2)]
    assert float(parts[0].nll) != float(parts[1].nll)
    np.testing.assert_allclose(twice["loss"], sum(p.nll for p in parts) / sum(p.weight for p in parts), rtol=1e-5)


@pytest.mark.usefixtures("quick")
def test_the_state_is_donated(start: Callable[..., Any]) -> None:
    module = model()
    state, make = start(module, AdamW())
    several_steps(train_step(module, NextToken(), make))(state, {"tokens": tokens(2, B, T + 1)}, jax.random.key(7))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


@pytest.mark.usefixtures("quick")
def test_a_step_is_traced_once(start: Callable[..., Any]) -> None:
    module = model(dropout=0.1)
    state, make = start(module, AdamW())
    objective = chex.assert_max_traces(NextToken().__call__, n=1)
    steps = several_steps(train_step(module, objective, make))  # type: ignore[arg-type]
    for n in range(4):
        state, _ = steps(state, {"tokens": tokens(5, B, T + 1, seed=n)}, jax.random.key(n))
    assert int(state.step) == 20
    with pytest.raises(AssertionError, match="traced > 1 times"):
        steps(state, {"tokens": tokens(3, B, T + 1)}, jax.random.key(7))


@pytest.mark.usefixtures("quick")
def test_bfloat16_compute_keeps_parameters_and_metrics_in_float32(start: Callable[..., Any]) -> None:
    module = model(precision=Precision(compute="bfloat16"))
    state, make = start(module, AdamW())
    state, metrics = jax.jit(train_step(module, NextToken(), make))(state, {"tokens": tokens(B, T + 1)}, jax.random.key(7))
    assert {a.dtype.name for a in jax.tree.leaves((state.params, metrics))} == {"float32"}
