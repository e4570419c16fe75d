"""Experts against a loop over tokens, in float64."""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.config import from_json, to_json
from transformer_jax.layers import (
    Attention,
    Build,
    Causal,
    Context,
    Dense,
    Experts,
    FeedForward,
    Gated,
    Group,
    LayerNorm,
    Residual,
    RMSNorm,
    Router,
    Routing,
    SigmoidRouter,
    SoftmaxRouter,
    Stack,
)
from transformer_jax.models import DecoderOnlyConfig, stacked, unstacked
from transformer_jax.precision import Precision

pytestmark = pytest.mark.usefixtures("quick_compile")
B, T, D, F = 3, 7, 19, 23
GPT_OSS = Gated(F, activation="quick_gelu", bias=True, limit=1.0, up_offset=1.0)
CONFIGS = {
    "switch": Experts(Dense(F, activation="relu"), num_experts=5, router=SoftmaxRouter(1, renormalise=False)),
    "mixtral": Experts(Gated(F), num_experts=7, router=SoftmaxRouter(3)),
    "gpt-oss": Experts(GPT_OSS, num_experts=5, router=SoftmaxRouter(2, bias=True)),
    "deepseek-v2": Experts(
        Gated(F), num_experts=12, router=SoftmaxRouter(3, renormalise=False, groups=4, top_groups=2, scale=1.7), shared=Gated(2 * F)
    ),
    "deepseek-v3": Experts(Gated(F), num_experts=12, router=SigmoidRouter(3, groups=4, top_groups=2, scale=2.5), shared=Dense(F, bias=True, activation="relu")),
    "one": Experts(Dense(F, bias=True, activation="relu"), num_experts=1, router=SoftmaxRouter(1)),
}  # fmt: skip
KINDS = {"dropless": {}, "reference": {"backend": "reference"}, "capacity": {"capacity": 12.0}}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def mlp(config, p, x):
    """Of one token."""

    def linear(name):
        return lambda x: x @ p[name]["kernel"] + p[name].get("bias", 0)

    if isinstance(config, Dense):
        return linear("down")(np.maximum(linear("up")(x), 0))
    gate, up = linear("gate")(x), linear("up")(x)
    if config.limit is not None:
        gate, up = np.minimum(gate, config.limit), np.clip(up, -config.limit, config.limit)
    slope = 1.702 if config.activation == "quick_gelu" else 1
    return linear("down")(gate * sigmoid(slope * gate) * (up + config.up_offset))


def routed(router, p, x):
    """The experts of one token and their weights."""
    logits = x @ p["kernel"] + p.get("bias", 0)
    scores = sigmoid(logits) if isinstance(router, SigmoidRouter) else np.exp(logits) / np.exp(logits).sum()
    choice = scores + p.get("correction", 0)
    size = len(choice) // router.groups
    best = 2 if isinstance(router, SigmoidRouter) else 1
    groups = sorted(range(router.groups), key=lambda g: -np.sort(choice[g * size : (g + 1) * size])[-best:].sum())[: router.top_groups]
    experts = sorted((e for e in range(len(choice)) if e // size in groups), key=lambda e: -choice[e])[: router.top_k]
    weights = scores[experts] / (scores[experts].sum() if router.renormalise else 1)
    return experts, router.scale * weights


def looped(config, params, x, valid=None):
    """The output, and how many tokens chose each expert. With a capacity each expert takes tokens as they come."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    rows = np.asarray(x, np.float64).reshape(-1, D)
    y, chosen = np.zeros_like(rows), np.zeros(config.num_experts, int)
    room = np.inf if config.capacity is None else np.ceil(config.capacity * len(rows) * config.router.top_k / config.num_experts)
    for n, row in enumerate(rows):
        if valid is None or valid.reshape(-1)[n]:
            for expert, weight in zip(*routed(config.router, p["router"], row)):
                if chosen[expert] < room:
                    y[n] += weight * mlp(config.mlp, jax.tree.map(lambda a, e=expert: a[e], p["mlp"]), row)
                chosen[expert] += 1
        if "shared" in p:
            y[n] += mlp(config.shared, p["shared"], row)
    return y.reshape(x.shape), chosen


def made(config, kind, **build):
    change = dict(KINDS[kind])
    backend = change.pop("backend", "auto")
    return config.replace(**change).make(Build(D, backend=backend, **build))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_output_is_the_weighted_sum_of_a_token_s_experts(close, normal, filled, name, kind):
    config, x = CONFIGS[name], normal(B, T, D)
    module = made(config, kind)
    variables = filled(module, x, Context())
    y, sown = jax.jit(partial(module.apply, mutable=["metrics"]))(variables, x, Context())
    expected, chosen = looped(config, variables["params"], x)
    close(y, expected, times=2)
    (load,) = sown["metrics"]["expert_load"]
    np.testing.assert_allclose(load, chosen / chosen.sum(), rtol=1e-6)
    assert load.dtype == "float32"


def test_parameters_of_experts_have_a_leading_axis_and_routers_their_own(normal):
    def shapes(config):
        return jax.tree.map(lambda a: a.shape, jax.eval_shape(config.make(Build(D)).init, jax.random.key(0), normal(B, T, D), Context()))

    kernels = {"gate": {"kernel": (7, D, F)}, "up": {"kernel": (7, D, F)}, "down": {"kernel": (7, F, D)}}
    assert shapes(CONFIGS["mixtral"].replace(load_balance_loss=0.1, z_loss=0.1)) == {"params": {"mlp": kernels, "router": {"kernel": (D, 7)}}}
    gpt_oss, v3 = (shapes(CONFIGS[name])["params"] for name in ("gpt-oss", "deepseek-v3"))
    assert {name: gpt_oss["mlp"][name]["bias"] for name in gpt_oss["mlp"]} == {"gate": (5, F), "up": (5, F), "down": (5, D)}
    assert gpt_oss["router"] == {"kernel": (D, 5), "bias": (5,)}
    assert v3["router"] == {"kernel": (D, 12), "correction": (12,)} and v3["shared"]["up"] == {"kernel": (D, F), "bias": (F,)}


def test_every_expert_starts_from_numbers_of_its_own(normal):
    params = CONFIGS["deepseek-v3"].make(Build(D)).init(jax.random.key(0), normal(1, 1, D), Context())["params"]
    kernel = np.asarray(params["mlp"]["up"]["kernel"])
    assert len(np.unique(kernel)) > 0.99 * kernel.size and kernel.std() == pytest.approx(0.02, rel=0.1)
    assert not np.any(params["router"]["correction"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["gpt-oss", "deepseek-v3"])
def test_gradients_are_those_of_all_experts_on_all_tokens_weighted_by_0_where_not_chosen(close, filled, name, kind):
    config = CONFIGS[name].replace(load_balance_loss=0.3, z_loss=0.2)
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        x, weight = (jnp.asarray(rng.normal(size=(B, T, D)), "float64") for _ in range(2))
        module = made(config, kind, precision=Precision("float64", compute="float64"))
        params = filled(module, x, Context())["params"]
        experts = [routed(config.router, jax.tree.map(np.asarray, params["router"]), row)[0] for row in np.asarray(x).reshape(-1, D)]
        chosen = np.zeros((B * T, config.num_experts))
        for n, mine in enumerate(experts):
            chosen[n, mine] = 1

        def loss(params, x):
            y, sown = module.apply({"params": params}, x, Context(), mutable=["losses"])
            return (y * weight).sum() + sum(jax.tree.leaves(sown["losses"]))

        def plain(params, x):
            rows, r, E = x.reshape(-1, D), params["router"], config.num_experts
            logits = rows @ r["kernel"] + r.get("bias", 0)
            scores = jax.nn.sigmoid(logits) if name == "deepseek-v3" else jax.nn.softmax(logits)
            weights = chosen * scores
            weights = config.router.scale * weights / weights.sum(-1, keepdims=True)
            outputs = [config.mlp.make(module.build).apply({"params": jax.tree.map(lambda a, e=e: a[e], params["mlp"])}, x, Context()) for e in range(E)]
            y = jnp.einsum("me,emd->md", weights, jnp.stack(outputs).reshape(E, -1, D)).reshape(x.shape)
            y += config.shared.make(module.build).apply({"params": params.get("shared", {})}, x, Context())
            probabilities = scores / scores.sum(-1, keepdims=True)
            balance = E * (chosen.sum(0) / chosen.sum() * probabilities.mean(0)).sum()
            return (y * weight).sum() + 0.3 * balance + 0.2 * (jax.nn.logsumexp(logits, -1) ** 2).mean()

        got, expected = (jax.jit(jax.value_and_grad(f, (0, 1)))(params, x) for f in (loss, plain))
    close(got, expected)
    if name == "deepseek-v3":
        assert not np.any(got[1][0]["router"]["correction"])


@pytest.mark.parametrize("capacity", [0.1, 0.5, 1.0])
def test_with_a_capacity_an_expert_takes_the_first_tokens_and_gives_the_others_nothing(close, normal, filled, capacity):
    config, x = CONFIGS["mixtral"].replace(capacity=capacity), normal(B, T, D)
    module = config.make(Build(D))
    variables = filled(module, x, Context())
    expected, chosen = looped(config, variables["params"], x)
    y, sown = jax.jit(partial(module.apply, mutable=["metrics"]))(variables, x, Context())
    close(y, expected, times=2)
    assert np.abs(expected - looped(config.replace(capacity=None), variables["params"], x)[0]).max() > 0.1
    np.testing.assert_allclose(sown["metrics"]["expert_load"][0], chosen / chosen.sum(), rtol=1e-6)  # what was asked for


@pytest.mark.parametrize("kind", KINDS)
def test_padding_takes_no_room_counts_nowhere_and_changes_no_bit_of_the_rest(close, normal, filled, kind):
    config = CONFIGS["deepseek-v3"].replace(load_balance_loss=1.0, z_loss=1.0)
    valid = np.random.default_rng(4).uniform(size=(B, T)) < 0.6
    x, context = normal(B, T, D), Context(valid=jnp.asarray(valid))
    module = made(config, kind)
    if kind == "capacity":
        module = config.replace(capacity=0.5).make(Build(D))
    variables = filled(module, x, Context())
    apply = jax.jit(partial(module.apply, mutable=["metrics", "losses"]))
    y, sown = apply(variables, x, context)
    expected, chosen = looped(module.config, variables["params"], x, valid)
    close(y, expected, times=2)
    np.testing.assert_allclose(sown["metrics"]["expert_load"][0], chosen / chosen.sum(), rtol=1e-6)
    alone = apply(variables, x[valid][None], Context())[1]
    close(sown["losses"], alone["losses"])
    other, other_sown = apply(variables, jnp.where(valid[..., None], x, 1e4), context)
    np.testing.assert_array_equal(other[valid], y[valid])
    jax.tree.map(np.testing.assert_array_equal, other_sown, sown)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mixtral", "deepseek-v3"])
def test_in_bfloat16_routing_is_in_float32(close, normal, filled, name, kind):
    config, x = CONFIGS[name].replace(load_balance_loss=1.0, z_loss=1.0), normal(B, T, D, dtype="bfloat16")
    module = made(config, kind, precision=Precision("bfloat16", compute="bfloat16"))
    variables = filled(module, x, Context())
    y, sown = jax.jit(partial(module.apply, mutable=["metrics", "losses"]))(variables, x, Context())
    expected, chosen = looped(config, variables["params"], x)
    assert y.dtype == "bfloat16" and {a.dtype.name for a in jax.tree.leaves(sown)} == {"float32"}
    np.testing.assert_allclose(sown["metrics"]["expert_load"][0], chosen / chosen.sum(), rtol=1e-6)
    close(y, expected)


@pytest.mark.parametrize("remat", [pytest.param("nothing", marks=pytest.mark.slow), "everything"])
def test_a_stack_of_experts_is_the_same_scanned_and_one_by_one_losses_and_gradients_included(close, remat):
    mixture = Experts(Gated(F, dropout=0.0), num_experts=5, load_balance_loss=0.1, z_loss=0.01, capacity=1.1)
    layers = (Residual(Attention(1, mask=Causal()), pre=RMSNorm()), Residual(mixture, pre=RMSNorm()))
    config = DecoderOnlyConfig(29, d_model=D, max_length=T, stack=Stack((Group(3, layers, remat=remat),)))
    model, tokens = config.make(), jnp.asarray(np.random.default_rng(0).integers(29, size=(B, T)))
    params = model.init(jax.random.key(0), tokens)
    assert set(params) == {"params"}

    def run(model, params):
        def loss(params):
            logits, sown = model.apply(params, tokens, mutable=["losses", "metrics"])
            return jax.nn.log_softmax(logits)[..., 0].mean() + sum(a.sum() for a in jax.tree.leaves(sown["losses"])), sown

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    (value, sown), gradients = run(model, params)
    (other, each), other_gradients = run(*unstacked(model, params))
    close((value, gradients), (other, stacked(model.clone(stacked=False), other_gradients)[1]), times=3)
    scanned = sown["losses"]["stack"]["groups_0"]["layers"]["sublayers_1"]["layer"]["load_balance"][0]
    assert scanned.shape == (3,)
    one_by_one = [each["losses"]["stack"]["groups_0"][f"layers_{n}"]["sublayers_1"]["layer"]["load_balance"][0] for n in range(3)]
    close(scanned, jnp.stack(one_by_one))


def test_a_step_drops_nothing_whatever_the_capacity(close, normal, filled):
    config, x = CONFIGS["mixtral"], normal(B, T, D)
    module = config.replace(capacity=0.1).make(Build(D))
    variables = filled(module, x, Context())
    assert config.init_cache(Build(D), B, T) == ()
    whole = looped(config, variables["params"], x)[0]
    step = jax.jit(partial(module.apply, method="step"))
    steps = [step(variables, x[:, t : t + 1], Context(), ()) for t in range(T)]
    assert all(cache == () for _, cache in steps)
    close(jnp.concatenate([y for y, _ in steps], 1), whole, times=2)


def test_dropout_of_experts_is_drawn_from_the_key(normal, filled):
    x = normal(B, T, D)
    config = Experts(Gated(F, dropout=0.5), num_experts=5)
    variables = filled(config.make(Build(D)), x, Context())
    module = config.make(Build(D, training=True))
    one, again, other = (module.apply(variables, x, Context(), rngs={"dropout": jax.random.key(seed)}) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other) and not np.allclose(one, config.make(Build(D)).apply(variables, x, Context()))


@dataclass(frozen=True)
class Bilinear(FeedForward):
    d_ff: int

    def compute(self, x, linear, drop):
        return linear("down", linear("left", x, self.d_ff) * linear("right", x, self.d_ff), x.shape[-1])


@dataclass(frozen=True)
class RoundRobin(Router):
    """Token n goes to experts n and n + 1, with half the weight each: no parameters, no scores."""

    def make(self, build, num_experts):
        return RoundRobinModule(num_experts)


class RoundRobinModule(nn.Module):
    num_experts: int

    def __call__(self, x):
        even = jnp.full((len(x), self.num_experts), 1 / self.num_experts)
        return Routing(even, even, jnp.full((len(x), 2), 0.5), (jnp.arange(len(x))[:, None] + jnp.arange(2)) % self.num_experts)


def test_experts_and_routers_of_one_s_own_need_no_more_than_their_formulas(close, normal, filled):
    module, x = Experts(Bilinear(F), num_experts=4, router=RoundRobin()).make(Build(D)), normal(B, T, D)
    variables = filled(module, x, Context())
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"]["mlp"])
    rows = np.asarray(x, np.float64).reshape(-1, D)
    expected = [
        sum(0.5 * ((row @ p["left"]["kernel"][e]) * (row @ p["right"]["kernel"][e])) @ p["down"]["kernel"][e] for e in (n % 4, (n + 1) % 4))
        for n, row in enumerate(rows)
    ]
    close(jax.jit(module.apply)(variables, x, Context()), np.reshape(expected, x.shape), times=2)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_survives_json(name):
    assert from_json(to_json(CONFIGS[name]), Experts) == CONFIGS[name]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Experts(Gated(F), num_experts=4, router=SoftmaxRouter(5)), r"SoftmaxRouter.top_k: expected at most num_experts = 4, received 5"),
        (
            lambda: Experts(Gated(F), num_experts=12, router=SigmoidRouter(5, groups=6, top_groups=2)),
            r"SigmoidRouter.top_k: expected at most 4, the experts of top_groups = 2 groups, received 5; raise top_groups",
        ),
        (
            lambda: Experts(Gated(F), num_experts=12, router=SigmoidRouter(2, groups=5)),
            r"SigmoidRouter.groups: expected a divisor of num_experts = 12, received 5",
        ),
        (lambda: SigmoidRouter(2, groups=2, top_groups=3), r"SigmoidRouter.top_groups: expected at most groups = 2, received 3"),
        (lambda: SoftmaxRouter(0), r"SoftmaxRouter.top_k: expected more than 0, received 0"),
        (lambda: Experts(Gated(F), num_experts=0), r"Experts.num_experts: expected more than 0, received 0"),
        (lambda: Experts(Gated(F), num_experts=4, capacity=0.0), r"Experts.capacity: expected more than 0, received 0.0"),
        (lambda: Experts(Gated(F), num_experts=4, z_loss=-0.1), r"Experts.z_loss: expected at least 0, received -0.1"),
        (lambda: Experts(Gated(F), num_experts=4, router=LayerNorm()), r"Experts.router: expected a Router config, received LayerNorm"),
        (lambda: Experts(CONFIGS["one"], num_experts=4), r"Experts.mlp: expected a FeedForward config, received Experts"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_where_it_is_written(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_open_bases_name_what_they_need():
    with pytest.raises(NotImplementedError, match=r"Router must define make\(build, num_experts\)"):
        Experts(Gated(F), num_experts=4, router=Router()).make(Build(D)).init(jax.random.key(0), jnp.zeros((1, 1, D)), Context())
