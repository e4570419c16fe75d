"""Costs by part, and how they grow, against formulas."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from transformer_jax.analysis import (
    CacheBytes,
    Cost,
    Growth,
    activation_bytes,
    cache_bytes,
    complexity,
    costs,
    crossings,
    describe,
    flops,
    part_of,
    peak,
    plot_flops,
)
from transformer_jax.layers import (
    Attention,
    Causal,
    CrossAttention,
    Dense,
    Experts,
    Gated,
    Group,
    LatentAttention,
    LayerNorm,
    Linear,
    Mixer,
    MixerModule,
    NoMask,
    RelativeBias,
    Residual,
    Stack,
)
from transformer_jax.layers.mixers.attention import MultiHead
from transformer_jax.models import DecoderOnlyConfig, EncoderDecoderConfig
from transformer_jax.training import SourceToTarget

L, D, V, T, B = 3, 20, 29, 12, 2


@dataclass(frozen=True)
class Mean(Mixer):
    """A user's own: out(mean of x so far)."""

    def make(self, build: Any) -> nn.Module:
        return MeanModule(self, build)


class MeanModule(MixerModule):
    @nn.compact
    def __call__(self, x: Any, context: Any) -> Any:
        d = self.build.d_model
        return Linear((d,), (d,), "attention_out", self.build)(jnp.cumsum(x, 1) / jnp.arange(1, x.shape[1] + 1)[:, None])


def config(*layers: Any) -> DecoderOnlyConfig:
    group = Group(L, tuple(Residual(layer, pre=LayerNorm()) for layer in layers))
    return DecoderOnlyConfig(V, d_model=D, max_length=T, stack=Stack((group,), final_norm=LayerNorm()))


GPT = config(Attention(4, mask=Causal()), Dense(4 * D))


def translator(*layers: Any, **fields: Any) -> Stack:
    return Stack((Group(L, tuple(Residual(layer, after=LayerNorm()) for layer in layers)),), **fields)


TRANSLATOR = EncoderDecoderConfig(
    V,
    d_model=D,
    max_length=T,
    encoder=translator(Attention(4, mask=NoMask()), Dense(4 * D), score=(RelativeBias(bidirectional=True),)),
    decoder=translator(Attention(4, mask=Causal()), CrossAttention(4), Dense(4 * D)),
)


def by_name(found: Any) -> dict[str, Any]:
    return {part.name: cost for part, cost in found.items()}


def test_a_gpt_by_hand() -> None:
    """2 FLOPs to a weight and token, 2 * 2 * T * D more for scores and values, three times that in training."""
    found = by_name(costs(GPT.make(), batch=B, length=T))
    assert list(found) == ["embedding Embedding", "stack 0.0 Attention", "stack 0 norms", "stack 0.1 Dense", "stack LayerNorm", "head LanguageModel"]
    tokens = B * T
    attention, dense, head = tokens * L * (8 * D**2 + 4 * T * D), tokens * L * 16 * D**2, tokens * 2 * V * D
    assert {name: cost.forward for name, cost in found.items() if cost.forward} == {
        "stack 0.0 Attention": attention,
        "stack 0.1 Dense": dense,
        "head LanguageModel": head,
    }
    assert all(cost.training == 3 * cost.forward for cost in found.values())
    assert found["stack 0.1 Dense"].kept == L * tokens * 4 * (D + 4 * D + 4 * D)  # its input, GELU's slope and GELU itself
    assert sum(found.values(), Cost()).parameters == 12 * L * D**2 + 2 * D * (2 * L + 1) + V * D


def test_experts_by_hand() -> None:
    """Each token goes through 2 of 5 gated MLPs, whose parameters all count, the router and the shared MLP."""
    made = config(Attention(4, mask=Causal()), Experts(Gated(7), num_experts=5, shared=Dense(11), load_balance_loss=0.1, z_loss=0.1))
    found, tokens = by_name(costs(made.make(), batch=B, length=T)), B * T
    assert {name: cost.forward for name, cost in found.items() if ".1" in name} == {
        "stack 0.1 Gated": L * tokens * 2 * 3 * 2 * D * 7,
        "stack 0.1 SoftmaxRouter": L * tokens * 2 * D * 5,
        "stack 0.1 Dense": L * tokens * 4 * D * 11,
    }
    assert all(cost.training == 3 * cost.forward for cost in found.values())
    assert found["stack 0.1 Gated"].parameters == L * 5 * 3 * D * 7 and found["stack 0.1 SoftmaxRouter"].parameters == L * D * 5
    grows = by_name(complexity(made, length=33))["stack 0.1 Gated"]
    assert grows.compute == Growth(L * 2 * 3 * 2 * D * 7, 0)
    assert peak(made.make(), batch=B, length=T).training > L * 5 * 3 * D * 7 * 4


@pytest.mark.slow
def test_a_translator_by_hand() -> None:
    """Source and target of T tokens: three attentions a layer, of which one makes its keys and values from the source."""
    found = by_name(costs(TRANSLATOR.make(backend="reference"), batch=B, length=T, objective=SourceToTarget()))
    assert list(found) == [
        "source_embedding Embedding", "target_embedding Embedding", "encoder RelativeBias", "encoder 0.0 Attention", "encoder 0 norms", "encoder 0.1 Dense",
        "decoder 0.0 Attention", "decoder 0 norms", "decoder 0.1 CrossAttention", "decoder 0.2 Dense", "head LanguageModel",
    ]  # fmt: skip
    assert found["encoder RelativeBias"] == Cost(parameters=4 * 32)
    assert found["head LanguageModel"].kept < B * T * 4 * (V + 9)  # the masks of padding, which all layers share, are attention's
    for attention in ("encoder 0.0 Attention", "decoder 0.0 Attention", "decoder 0.1 CrossAttention"):
        assert (found[attention].parameters, found[attention].forward) == (L * 4 * D**2, B * T * L * (8 * D**2 + 4 * T * D))
    assert all(cost.training == 3 * cost.forward for cost in found.values())
    grows = complexity(TRANSLATOR, length=T)
    assert by_name(grows)["decoder 0.1 CrossAttention"].compute == Growth(linear=L * 8 * D**2, square=L * 4 * D)
    assert crossings(grows) == {"the MLPs": 32 * D / 12, "all other products of the layers": 56 * D / 12}


def test_latents_and_sinks_by_hand_and_described() -> None:
    """Down to the latents and a shared key, up to heads, scores and values of different widths, and out; a cache of the latents and that key."""
    n, q, kv, nope, rope, value = 3, 13, 7, 5, 4, 2
    latent = LatentAttention(n, q_rank=q, kv_rank=kv, nope_head_dim=nope, rope_head_dim=rope, value_head_dim=value, mask=Causal(), sinks=True)
    model = config(latent, Dense(4 * D)).make()
    found = by_name(costs(model, batch=B, length=T))["stack 0.0 LatentAttention"]
    weights = D * q + q * n * (nope + rope) + D * (kv + rope) + kv * n * (nope + value) + n * value * D
    assert found.parameters == L * (weights + q + kv + n)
    assert found.forward == B * T * L * (2 * weights + 2 * T * n * (nope + rope + value))
    assert found.training == 3 * found.forward
    grows = complexity(model.config, length=T)
    assert by_name(grows)["stack 0.0 LatentAttention"].compute == Growth(linear=L * 2 * weights, square=L * 2 * n * (nope + rope + value))
    assert cache_bytes(model)["latent"] == CacheBytes(per_token=L * (kv + rope) * 4, fixed=0)
    text = describe(model, grows, batch=B, length=T)
    assert "LatentAttention(3, sinks=True, q_rank=13, kv_rank=7" in text and f"{found.parameters:,}" in text


def test_parts_sum_to_the_whole(cases: dict[str, Any], name: str) -> None:
    config, objective = cases[name]
    model = config.make(backend="reference")
    variables, batch = jax.eval_shape(lambda: (model.init(jax.random.key(0), *config.example()), objective.example(B, T)))

    def loss(variables: Any, batch: Any) -> Any:
        return objective(model, variables, batch).total

    found = sum(costs(model, batch=B, length=T, objective=objective).values(), Cost())
    assert found.parameters == sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert found.forward == sum(flops(loss, variables, batch).values())
    assert found.training == sum(flops(jax.grad(loss), variables, batch).values())
    assert found.kept == sum(activation_bytes(loss, variables, batch).values())


def test_what_is_squared_is_attention_and_nothing_shrinks(cases: dict[str, Any], name: str) -> None:
    for part, grow in complexity(cases[name].config, length=T).items():
        assert all(n >= 0 for growth in vars(grow).values() for n in vars(growth).values())
        squared = isinstance(part.config, MultiHead)
        assert (grow.compute.square > 0, grow.plain.square > 0, grow.tiled.square > 0) == (squared, squared and name != "remat", False)


def test_what_is_done_once_to_a_sequence_is_fixed(cases: dict[str, Any]) -> None:
    head = by_name(complexity(cases["albert"].config, length=T))["head SequenceClassifier"]
    assert head.compute == Growth(linear=0, square=0, fixed=2 * 64**2 + 2 * 64 * 7)


def test_remat_of_everything_costs_a_forward_pass_more_but_for_the_last_product_of_each_sublayer() -> None:
    """A turn's last product feeds the residual stream alone; the one before it feeds the next sublayer."""
    (group,) = GPT.stack.groups
    remat = GPT.replace(stack=GPT.stack.replace(groups=(group.replace(remat="everything"),)))
    plain, again = (by_name(costs(c.make(), batch=B, length=T)) for c in (GPT, remat))
    more = {name: again[name].training - plain[name].training for name in plain}
    assert more["stack 0.0 Attention"] == plain["stack 0.0 Attention"].forward
    assert more["stack 0.1 Dense"] == plain["stack 0.1 Dense"].forward // 2
    assert plain["stack 0.0 Attention"].kept > 0 == again["stack 0.0 Attention"].kept


@pytest.mark.parametrize("fields", [{"unroll": 0}, {"stacked": False}, {"backend": "reference"}], ids=str)
def test_the_layout_of_a_model_changes_no_product(fields: dict[str, Any]) -> None:
    found, plain = (costs(GPT.make(**f), batch=B, length=T) for f in (fields, {}))
    assert {part: (cost.parameters, cost.forward, cost.training) for part, cost in found.items()} == {
        part: (cost.parameters, cost.forward, cost.training) for part, cost in plain.items()
    }


def test_growth_and_crossings_are_those_of_the_formulas() -> None:
    found = complexity(GPT, length=T)
    grows = by_name(found)
    attention = grows["stack 0.0 Attention"]
    assert attention.compute == Growth(linear=L * 8 * D**2, square=L * 4 * D)
    assert grows["stack 0.1 Dense"].compute == Growth(linear=L * 16 * D**2, square=0)
    assert grows["head LanguageModel"].compute == Growth(linear=2 * V * D, square=0)
    assert attention.plain.square >= L * 4 * 4 and attention.tiled.square == 0 < attention.tiled.linear
    assert crossings(found) == {"the MLPs": 4 * D, "all other products of the layers": 6 * D}


def test_what_has_no_square_crosses_nothing(tmp_path: Any) -> None:
    found = complexity(config(Mean(), Dense(8)), length=T)
    assert crossings(found) == {}
    plot_flops(found, tmp_path / "flops.png")
    assert (tmp_path / "flops.png").read_bytes().startswith(b"\x89PNG") and [file.name for file in tmp_path.iterdir()] == ["flops.png"]


def test_a_mixer_from_elsewhere_is_counted() -> None:
    found = by_name(costs(config(Mean(), Gated(13)).make(), batch=B, length=T))
    assert found["stack 0.0 Mean"].parameters == L * D**2
    assert found["stack 0.0 Mean"].forward == B * T * L * 2 * D**2
    assert found["stack 0.0 Mean"].kept > 0


def test_training_takes_more_at_once_than_the_forward_pass_and_twice_the_batch_twice_as_much() -> None:
    once, twice = (peak(GPT.make(), batch=b, length=T) for b in (50, 100))
    assert once.training > once.forward
    assert twice.forward == pytest.approx(2 * once.forward, rel=0.05) and twice.training == pytest.approx(2 * once.training, rel=0.05)


@pytest.mark.parametrize(
    ("path", "part"),
    [
        (("DecoderOnly", "stack", "groups_0", "layers", "sublayers_1", "layer", "up"), "stack 0.1 Dense"),
        (("stack", "groups_0", "layers_2", "sublayers_0", "layer", "query"), "stack 0.0 Attention"),
        (("stack", "groups_0", "layers", "sublayers_0", "pre"), "stack 0 norms"),
        (("stack", "groups_0", "layers", "sublayers_0"), "stack 0 residual stream"),
        (("stack", "final_norm"), "stack LayerNorm"),
        (("embedding", "position"), "embedding Embedding"),
        (("DecoderOnly",), "head LanguageModel"),
        ((), "head LanguageModel"),
    ],
)
def test_a_module_belongs_to_the_nearest_part_around_it(path: tuple[str, ...], part: str) -> None:
    assert part_of(GPT, path).name == part
