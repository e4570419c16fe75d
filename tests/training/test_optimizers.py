"""Schedules against their formulas; which parameters decay, and by how much; clipping."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transformer_jax.layers import Attention, Causal, Dense, Embedding, Gated, Group, LanguageModel, LayerNorm, Learned, Residual, RMSNorm, Stack
from transformer_jax.layers.scores import LearnedScore, Parameter, RelativeBias
from transformer_jax.models import DecoderOnlyConfig, unstacked
from transformer_jax.training import SGD, AdamW, Constant, InverseSqrt, Lion, Optimizer, Schedule, WarmupCosine, decay_mask


def values(schedule: Schedule, peak: float, steps: int, at: list[int]) -> list[float]:
    return [float(v) for v in jax.vmap(schedule.make(peak, steps))(jnp.asarray(at))]


def test_warmup_cosine_is_a_line_and_half_a_cosine() -> None:
    peak, steps, warmup, final = 0.3, 500, 100, 0.2
    at = [0, 1, 50, 99, 100, 101, 300, 400, 499]

    def formula(step: int) -> float:
        if step <= warmup:
            return peak * (step + 1) / (warmup + 1)
        done = (step - warmup) / (steps - warmup)
        return peak * (final + (1 - final) * (1 + math.cos(math.pi * done)) / 2)

    np.testing.assert_allclose(values(WarmupCosine(warmup, final=final), peak, steps, at), [formula(s) for s in at], rtol=1e-5)
    assert values(WarmupCosine(warmup, final=final), peak, steps, [100, 300]) == pytest.approx([peak, peak * 0.6])


def test_the_first_step_of_a_warm_up_is_not_lost_and_the_last_comes_near_the_end() -> None:
    first, last = values(WarmupCosine(4, final=0.1), 1.0, 1000, [0, 999])
    assert first == pytest.approx(0.2) and last == pytest.approx(0.1, rel=1e-4)


def test_a_warm_up_longer_than_half_the_run_ends_there() -> None:
    down = [(1 + math.cos(math.pi * n / 5)) / 2 for n in (1, 4)]
    assert values(WarmupCosine(100, final=0.0), 1.0, 10, [4, 5, 6, 9]) == pytest.approx([5 / 6, 1, *down])
    assert values(WarmupCosine(100), 1.0, 1, [0]) == [1.0]


def test_without_warm_up_the_peak_comes_first() -> None:
    assert values(WarmupCosine(0, final=0.5), 2.0, 10, [0, 5]) == pytest.approx([2.0, 1.5])
    assert values(Constant(), 2.0, 10, [0, 5, 9]) == [2.0, 2.0, 2.0]


def test_constant_is_a_line_and_then_flat() -> None:
    assert values(Constant(4), 0.5, 100, [0, 1, 3, 4, 5, 99]) == pytest.approx([0.1, 0.2, 0.4, 0.5, 0.5, 0.5])


def test_inverse_sqrt_counts_steps_from_one() -> None:
    assert values(InverseSqrt(4), 0.5, 100, [0, 1, 3, 8, 15, 99]) == pytest.approx([0.125, 0.25, 0.5, 0.5 * 2 / 3, 0.25, 0.1])


def slope(s: Any, i: Any, slope: Any, kernel: Any) -> Any:
    return s + slope * kernel * (i.k - i.q)


@dataclass(frozen=True)
class Slope(LearnedScore):
    """A score one of whose arrays has a kernel's name."""

    function = slope

    def parameters(self, num_heads: int) -> dict[str, Parameter]:
        return {"slope": Parameter((num_heads,), "N"), "kernel": Parameter((num_heads,), "N")}


def everything() -> DecoderOnlyConfig:
    """Every kind of parameter there is: biases everywhere, both norms, learned positions, an untied head, scores of the stack and of a layer."""
    attention = Attention(2, mask=Causal(), qk_norm=RMSNorm(), qkv_bias=True, out_bias=True, score=(Slope(),))
    attention, shared = Residual(attention, pre=LayerNorm(), post=RMSNorm()), Residual(Gated(7), after=LayerNorm())
    groups = (Group(2, (attention, Residual(Dense(6, bias=True)))), Group(3, (shared,), share=True))
    stack = Stack(groups, final_norm=LayerNorm(), score=(RelativeBias(8, max_distance=16),))
    head, embedding = LanguageModel(tied=False, bias=True), Embedding(Learned(), norm=LayerNorm())
    return DecoderOnlyConfig(11, d_model=8, max_length=5, stack=stack, head=head, embedding=embedding)


def params(layout: str) -> Any:
    model = everything().make()
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 5), jnp.int32)))
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 4, np.float32), shapes)
    return variables["params"] if layout == "stacked" else unstacked(model, variables)[1]["params"]


def by_path(tree: Any) -> dict[str, Any]:
    return {"/".join(part.key for part in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("layout", ["stacked", "unstacked"])
def test_kernels_and_embeddings_decay_and_nothing_else(layout: str) -> None:
    decayed = by_path(decay_mask(params(layout)))
    layers = 1 if layout == "stacked" else 2
    assert decayed["stack/scores_0/table"] is False
    scores = [name for name in decayed if "/scores_0/" in name and name.startswith("stack/groups_0")]
    assert len(scores) == 2 * layers and not any(decayed[name] for name in scores)  # one of them is called kernel
    for name, mine in decayed.items():
        if name not in scores:
            assert mine == (name.split("/")[-1] in ("kernel", "embedding")), name
    assert sum(decayed.values()) == 2 + 1 + layers * (4 + 2) + 3  # token and position embeddings, the head, attention and dense, the shared gated
    assert {name.split("/")[-1] for name, mine in decayed.items() if not mine} == {"bias", "scale", "table", "slope", "kernel"}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("layout", ["stacked", "unstacked"])
@pytest.mark.parametrize("optimizer", [AdamW(0.25, weight_decay=0.5), Lion(0.25, weight_decay=0.5)], ids=lambda o: type(o).__name__)
def test_without_a_gradient_a_step_takes_off_the_decay_alone(optimizer: Optimizer, layout: str) -> None:
    start = params(layout)
    rule = optimizer.make(Constant().make(optimizer.learning_rate, 10), start)
    updates = jax.jit(lambda start: rule.update(jax.tree.map(jnp.zeros_like, start), rule.init(start), start)[0])(start)
    for name, decayed in by_path(decay_mask(start)).items():
        np.testing.assert_array_equal(by_path(updates)[name], -0.25 * 0.5 * 4 if decayed else 0, err_msg=name)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (AdamW(0.5, b1=0.8, b2=0.95, eps=0.1, weight_decay=0.3, clip_norm=0.0), lambda mask: optax.adamw(0.5, 0.8, 0.95, 0.1, weight_decay=0.3, mask=mask)),
        (Lion(0.5, b1=0.8, b2=0.95, weight_decay=0.3, clip_norm=0.0), lambda mask: optax.lion(0.5, 0.8, 0.95, weight_decay=0.3, mask=mask)),
        (SGD(0.5, momentum=0.8, clip_norm=0.0), lambda mask: optax.sgd(0.5, 0.8)),
    ],
    ids=lambda o: type(o).__name__,
)
def test_every_field_reaches_the_rule(optimizer: Optimizer, expected: Callable[[Any], optax.GradientTransformation]) -> None:
    params = {"kernel": jnp.array([1.0, -2.0, 3.0]), "bias": jnp.array([0.5])}
    rules = optimizer.make(Constant().make(optimizer.learning_rate, 10), params), expected({"kernel": True, "bias": False})

    @functools.partial(jax.jit, static_argnums=0)
    def train(n: int) -> Any:
        now, state = params, rules[n].init(params)
        for _ in range(3):
            updates, state = rules[n].update(jax.tree.map(jnp.cos, now), state, now)
            now = optax.apply_updates(now, updates)
        return now

    chex.assert_trees_all_close(train(0), train(1), rtol=1e-6)


@pytest.mark.parametrize(("clip_norm", "factor"), [(1.0, 1 / 13), (6.5, 0.5), (20.0, 1.0), (0.0, 1.0)])
def test_gradients_are_clipped_by_the_norm_of_all_of_them(clip_norm: float, factor: float) -> None:
    start = {"a": {"kernel": jnp.zeros(1)}, "b": {"bias": jnp.zeros(2)}}
    grads = {"a": {"kernel": jnp.array([-12.0])}, "b": {"bias": jnp.array([3.0, 4.0])}}  # norm 13
    rule = SGD(0.5, momentum=0.0, clip_norm=clip_norm).make(Constant().make(0.5, 10), start)
    updates, _ = rule.update(grads, rule.init(start), start)
    np.testing.assert_allclose(updates["a"]["kernel"], [6.0 * factor], rtol=1e-6)
    np.testing.assert_allclose(updates["b"]["bias"], [-1.5 * factor, -2.0 * factor], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdamW(0.0), r"AdamW\.learning_rate: expected more than 0, received 0\.0"),
        (lambda: Lion(-1.0), r"Lion\.learning_rate: expected more than 0, received -1\.0"),
        (lambda: SGD(clip_norm=-1.0), r"SGD\.clip_norm: expected at least 0, received -1\.0"),
        (lambda: WarmupCosine(-1), r"WarmupCosine\.warmup: expected at least 0, received -1"),
        (lambda: WarmupCosine(final=-0.1), r"WarmupCosine\.final: expected at least 0, received -0\.1"),
        (lambda: Constant(-1), r"Constant\.warmup: expected at least 0, received -1"),
        (lambda: InverseSqrt(0), r"InverseSqrt\.warmup: expected more than 0, received 0"),
    ],
)
def test_numbers_out_of_range_are_refused_where_they_are_written(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("base", "call", "method"), [(Optimizer, lambda o: o.update(None, None), "update"), (Schedule, lambda s: s.make(1.0, 2), "make")])
def test_an_own_type_without_its_method_is_told_which(base: type, call: Callable[[Any], Any], method: str) -> None:
    own = dataclass(frozen=True)(type("Own", (base,), {"learning_rate": 1.0, "clip_norm": 0.0}))()
    with pytest.raises(NotImplementedError, match=rf"Own must define {method}\("):
        call(own)
