"""Routing against loops over rows, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.ops.routing import expert_load, load_balance_loss, router_z_loss, select_experts

pytestmark = pytest.mark.usefixtures("quick_compile")
M, E = 23, 12
RNG = np.random.default_rng(0)
SCORES = RNG.uniform(0.05, 1, size=(M, E))
CORRECTION = RNG.normal(size=E)


def selected(choice, scores, top_k, groups, top_groups, group_best, renormalise, scale):
    """Experts and weights of one row, by sorting."""
    size = len(choice) // groups
    goodness = [sum(sorted(choice[g * size : (g + 1) * size])[-group_best:]) for g in range(groups)]
    best = sorted(range(groups), key=lambda g: -goodness[g])[:top_groups]
    experts = sorted((e for e in range(len(choice)) if e // size in best), key=lambda e: -choice[e])[:top_k]
    weights = np.array([scores[e] for e in experts])
    return experts, scale * (weights / weights.sum() if renormalise else weights)


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize(
    ("top_k", "groups", "top_groups", "group_best"), [(1, 1, 1, 1), (5, 1, 1, 1), (12, 1, 1, 1), (3, 4, 2, 1), (6, 4, 2, 2), (3, 4, 3, 2), (2, 12, 5, 2)]
)
def test_the_best_experts_of_the_best_groups_are_taken_with_weights_of_the_scores(top_k, groups, top_groups, group_best, renormalise):
    options = {"groups": groups, "top_groups": top_groups, "group_best": group_best, "renormalise": renormalise, "scale": 2.5}
    with jax.enable_x64(True):
        choice, scores = jnp.asarray(SCORES + CORRECTION), jnp.asarray(SCORES)
        weights, experts = jax.jit(lambda choice, scores: select_experts(choice, scores, top_k, **options))(choice, scores)
    for row in range(M):
        right, expected = selected(SCORES[row] + CORRECTION, SCORES[row], top_k, *options.values())
        assert experts[row].tolist() == right
        np.testing.assert_allclose(weights[row], expected, rtol=1e-12)


def test_the_choice_has_no_derivative_and_the_weights_have_that_of_their_formula():
    weight = RNG.normal(size=(M, 3))

    def loss(choice, scores):
        return (select_experts(choice, scores, 3, renormalise=True)[0] * weight).sum()

    with jax.enable_x64(True):
        by_choice, by_scores = jax.jit(jax.grad(loss, (0, 1)))(jnp.asarray(SCORES + CORRECTION), jnp.asarray(SCORES))
    assert not np.any(by_choice)
    for row in range(M):
        experts, w = selected(SCORES[row] + CORRECTION, SCORES[row], 3, 1, 1, 1, True, 1.0)
        total = SCORES[row][experts].sum()
        expected = np.zeros(E)
        expected[experts] = (weight[row] - (weight[row] * w).sum()) / total  # of s / sum s
        np.testing.assert_allclose(by_scores[row], expected, rtol=1e-11, atol=1e-13)


def test_softmax_renormalised_is_softmax_over_the_chosen_logits_alone():
    with jax.enable_x64(True):
        logits = jnp.asarray(RNG.normal(size=(M, E)) * 3)
        weights, experts = select_experts(jax.nn.softmax(logits), jax.nn.softmax(logits), 4, renormalise=True)
        chosen, best = jax.lax.top_k(logits, 4)
        np.testing.assert_array_equal(experts, best)
        np.testing.assert_allclose(weights, jax.nn.softmax(chosen), rtol=1e-12)


def test_of_equal_choices_the_first_expert_is_taken():
    _, experts = select_experts(jnp.zeros((2, 6)), jnp.ones((2, 6)), 2, groups=3, top_groups=2, group_best=2)
    np.testing.assert_array_equal(experts, [[0, 1]] * 2)


def test_the_load_balance_loss_is_experts_times_the_sum_of_load_times_mean_probability():
    probabilities = SCORES / SCORES.sum(-1, keepdims=True)
    experts = RNG.integers(E, size=(M, 3))
    load = np.bincount(experts.ravel(), minlength=E) / experts.size
    with jax.enable_x64(True):
        got = load_balance_loss(jnp.asarray(probabilities), jnp.asarray(load))
        np.testing.assert_allclose(expert_load(jnp.bincount(experts.ravel(), length=E), jnp.float64), load, rtol=1e-14)
    np.testing.assert_allclose(got, E * sum(load[e] * probabilities[:, e].mean() for e in range(E)), rtol=1e-13)


def test_the_load_balance_loss_is_1_where_use_is_even_and_the_number_of_experts_where_one_does_all():
    even, one = np.full(E, 1 / E), np.eye(E)[3]
    for share, expected in ((even, 1), (one, E)):
        assert float(load_balance_loss(jnp.asarray(np.tile(share, (M, 1)), jnp.float32), jnp.asarray(share, jnp.float32))) == pytest.approx(expected, rel=1e-6)


def test_losses_are_means_over_the_rows_that_count():
    logits, valid = RNG.normal(size=(M, E)), RNG.uniform(size=M) < 0.6
    probabilities, load = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), RNG.dirichlet(np.ones(E))
    junk = np.where(valid[:, None], logits, np.nan)
    with jax.enable_x64(True):
        z, balance = router_z_loss(jnp.asarray(junk), jnp.asarray(valid)), load_balance_loss(jax.nn.softmax(junk), jnp.asarray(load), jnp.asarray(valid))
        np.testing.assert_allclose(z, (np.log(np.exp(logits).sum(-1)) ** 2)[valid].mean(), rtol=1e-13)
        np.testing.assert_allclose(router_z_loss(jnp.asarray(logits)), (np.log(np.exp(logits).sum(-1)) ** 2).mean(), rtol=1e-13)
        np.testing.assert_allclose(balance, E * (load * probabilities[valid].mean(0)).sum(), rtol=1e-13)


def test_where_nothing_counts_losses_and_load_are_0():
    nobody = jnp.zeros(M, bool)
    assert not np.any(expert_load(jnp.zeros(E, jnp.int32)))
    assert float(router_z_loss(jnp.ones((M, E)), nobody)) == float(load_balance_loss(jnp.ones((M, E)), jnp.zeros(E), nobody)) == 0
