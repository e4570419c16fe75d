"""Models with experts in training: their losses, their metrics, and that the load stays even."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transformer_jax.layers import Attention, Causal, Dense, Experts, Gated, Group, Residual, RMSNorm, SoftmaxRouter, Stack
from transformer_jax.models import DecoderOnly, DecoderOnlyConfig
from transformer_jax.precision import Precision
from transformer_jax.training import Experiment, NextToken, init_state, train, train_step

V, D, T, B = 23, 10, 7, 4
BALANCE, Z = 0.3, 0.2


def model(**losses: float) -> DecoderOnly:
    layers = (Residual(Attention(2, mask=Causal()), pre=RMSNorm()), Residual(Experts(Gated(14), num_experts=5, router=SoftmaxRouter(2), **losses)))
    config = DecoderOnlyConfig(V, d_model=D, max_length=T, stack=Stack((Group(2, layers),)))
    return config.make(precision=Precision("float64", compute="float64"))


def batch(seed: int = 0, rows: int = B) -> dict[str, jax.Array]:
    tokens = np.random.default_rng(seed).integers(V, size=(rows, T + 1))
    tokens[0, 3:6] = -1  # labels that do not count
    return {"tokens": jnp.asarray(tokens, jnp.int32)}


@pytest.fixture
def variables(filled: Callable[..., Any]) -> Any:
    with jax.enable_x64(True):
        return filled(model(), jnp.zeros((1, T), jnp.int32))


@pytest.mark.usefixtures("quick")
def test_what_experts_sow_is_added_to_the_loss_as_a_mean_and_to_nothing_else(variables: Any) -> None:
    with jax.enable_x64(True):
        given, both = batch(), model(load_balance_loss=BALANCE, z_loss=Z)
        plain, sums = (NextToken()(m, variables, given) for m in (model(), both))
        _, sown = both.apply(variables, jnp.maximum(given["tokens"][:, :-1], 0), mutable=["losses", "metrics"])
    plain, sums, sown = jax.tree.map(np.asarray, (plain, sums, sown))
    layer = sown["losses"]["stack"]["groups_0"]["layers"]["sublayers_1"]["layer"]
    expected = layer["load_balance"][0].sum() + layer["router_z"][0].sum()
    assert layer["load_balance"][0].shape == (2,) and layer["load_balance"][0].min() > 0.9 * BALANCE
    np.testing.assert_allclose(sums.total - plain.total, sums.weight * expected, rtol=1e-12)
    np.testing.assert_allclose([sums.nll, sums.correct, sums.weight], [plain.nll, plain.correct, plain.weight], rtol=1e-14)
    np.testing.assert_allclose(sums.metrics["aux_loss"] / sums.weight, expected, rtol=1e-12)
    (load,) = sown["metrics"]["stack"]["groups_0"]["layers"]["sublayers_1"]["layer"]["expert_load"]
    assert load.shape == (2, 5)
    np.testing.assert_allclose(sums.metrics["router_load_max"] / sums.weight, 5 * load.max(), rtol=1e-12)
    assert set(plain.metrics) == {"router_load_max"}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_step_follows_the_gradient_of_loss_and_sown_losses_part_by_part(close: Callable[..., None], variables: Any, accumulate: int) -> None:
    with jax.enable_x64(True):
        module, given = model(load_balance_loss=BALANCE, z_loss=Z), batch()
        parts = [{"tokens": part} for part in jnp.split(given["tokens"], accumulate)]

        def loss(params: Any) -> Any:
            sums = [NextToken()(module, {"params": params}, part) for part in parts]
            weight = sum(s.weight for s in sums)
            metrics = {name: sum(s.metrics[name] for s in sums) / weight for name in ("aux_loss", "router_load_max")}
            return sum(s.total for s in sums) / weight, metrics

        optimizer = optax.sgd(0.1)
        state = init_state(module, optimizer, jax.random.key(0), jnp.zeros((1, T), jnp.int32)).replace(params=variables["params"])
        new, metrics = jax.jit(train_step(module, NextToken(), optimizer, accumulate))(state, given, jax.random.key(1))
        gradient, expected = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
        close(new.params, jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], gradient))
        close({name: metrics[name] for name in expected}, expected)
    assert set(metrics) == {"loss", "accuracy", "grad_norm", "aux_loss", "router_load_max"}


@pytest.mark.usefixtures("quick")
def test_a_model_without_experts_has_the_metrics_of_any_model() -> None:
    config = DecoderOnlyConfig(V, d_model=D, max_length=T, stack=Stack((Group(1, (Residual(Dense(7)),)),)))
    state = init_state(config.make(), optax.sgd(0.1), jax.random.key(0), jnp.zeros((1, T), jnp.int32))
    _, metrics = jax.eval_shape(train_step(config.make(), NextToken(), optax.sgd(0.1)), state, batch(), jax.random.key(1))
    assert set(metrics) == {"loss", "accuracy", "grad_norm"}


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_after_200_steps_no_expert_has_three_times_the_mean_load_and_the_loads_are_written_down(
    experiment: Callable[..., Experiment], tmp_path: Path
) -> None:  # fmt: skip
    tiny = experiment(tmp_path / "experts", steps=200, steps_per_call=20, batch=8, evaluate_every=100, checkpoint_every=200)
    attention, _ = tiny.model.stack.groups[0].sublayers
    mixture = Residual(Experts(Gated(13), num_experts=7, router=SoftmaxRouter(2), load_balance_loss=0.02, z_loss=1e-3), pre=RMSNorm())
    folder = train(tiny.replace(model=tiny.model.replace(stack=Stack((Group(2, (attention, mixture)),)))))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 200 and all({"router_load_max", "aux_loss"} <= row.keys() for row in rows)
    assert all(1 <= row["router_load_max"] <= 3.5 for row in rows)  # 3.5 would be two experts for all tokens
    assert max(row["router_load_max"] for row in rows[-20:]) < 3
    assert rows[-1]["loss"] < rows[0]["loss"] - 1
    assert 0.9 * 2 * 0.02 < rows[-1]["aux_loss"] < 2 * (2 * 0.02 + 1e-3 * 30)
