"""Probabilities of every attention of a model, by place, in either layout."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.evaluation import attention_probabilities
from transformer_jax.evaluation.attention_maps import place_of
from transformer_jax.layers import Attention, Branch, Causal, CrossAttention, Dense, Group, LatentAttention, NoMask, Parallel, Residual, RMSNorm, Rope, Stack
from transformer_jax.models import DecoderOnlyConfig, EncoderDecoderConfig, ModelConfig, unstacked

pytestmark = pytest.mark.usefixtures("quick_compile")
V, B, S, T = 19, 2, 5, 7
LOOKING, MLP = Attention(2, mask=NoMask()), Residual(Dense(11), pre=RMSNorm())
CAUSAL = Residual(Attention(3, mask=Causal(), head_dim=4), pre=RMSNorm())


def decoder(*groups: Group) -> ModelConfig:
    return DecoderOnlyConfig(V, d_model=8, max_length=11, stack=Stack(groups))


MANY = decoder(Group(2, (*5 * (MLP, CAUSAL), MLP, Residual(LOOKING.replace(mask=Causal())))))
MODELS: dict[str, tuple[ModelConfig, list[str]]] = {
    "groups": (
        decoder(Group(2, (MLP, CAUSAL)), Group(1, (MLP,)), Group(3, (CAUSAL,), share=True)),
        [f"stack/groups_0/layers_{n}/sublayers_1/layer" for n in range(2)] + [f"stack/groups_2/layers_{n}/sublayers_0/layer" for n in range(3)],
    ),
    "branches": (
        decoder(Group(1, (Residual(Parallel((Branch(LOOKING, pre=RMSNorm()), Dense(7), LOOKING))),))),
        ["stack/groups_0/layers_0/sublayers_0/layer/branches_0/layer", "stack/groups_0/layers_0/sublayers_0/layer/branches_2"],
    ),
    "many": (MANY, [f"stack/groups_0/layers_{n}/sublayers_{k}/layer" for n in range(2) for k in (1, 3, 5, 7, 9, 11)]),
    "both": (
        EncoderDecoderConfig(
            V,
            d_model=8,
            max_length=11,
            encoder=Stack((Group(2, (Residual(LOOKING, pre=RMSNorm()),)),)),
            decoder=Stack((Group(1, (CAUSAL,)), Group(2, (CAUSAL, Residual(CrossAttention(2)), MLP)))),
        ),
        [
            *(f"encoder/groups_0/layers_{n}/sublayers_0/layer" for n in range(2)),
            "decoder/groups_0/layers_0/sublayers_0/layer",
            *(f"decoder/groups_1/layers_{n}/sublayers_{k}/layer" for n in range(2) for k in range(2)),
        ],
    ),
}


def probabilities(config: ModelConfig, filled: Any, layout: Any = lambda *m: m, **options: Any) -> dict[str, jax.Array]:
    rng, model = np.random.default_rng(0), config.make()
    inputs = [rng.integers(0, V, (B, length)).astype(np.int32) for length in ((S, T) if hasattr(model, "encode") else (T,))]
    return attention_probabilities(*layout(model, filled(model, *config.example())), *inputs, **options)


@pytest.mark.parametrize("name", MODELS)
def test_they_are_in_order_of_depth_and_the_same_in_either_layout(name: str, filled: Any, close: Any) -> None:
    config, paths = MODELS[name]
    found = probabilities(config, filled)
    assert list(found) == paths
    apart = probabilities(config, filled, unstacked)
    assert list(apart) == paths
    close(found, apart)
    for p in found.values():
        np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-5)
    flat = [np.asarray(p).ravel() for p in found.values()]
    assert all(not np.array_equal(a, b) for n, a in enumerate(flat) for b in flat[:n])


def test_shapes_and_masks_are_those_of_each_side(filled: Any) -> None:
    config, _ = MODELS["both"]
    found = probabilities(config, filled, source_valid=jnp.arange(S)[None] < jnp.array([[5], [3]]))
    for path, p in found.items():
        across = path.endswith("1/layer")
        assert p.shape == ((B, 2, S, S) if path.startswith("encoder") else (B, 2, T, S) if across else (B, 3, T, T))
        if across or path.startswith("encoder"):
            assert (p[1, ..., 3:] == 0).all() and (p[0] > 0).all()
        else:
            assert (np.asarray(p)[..., ~np.tri(T, dtype=bool)] == 0).all()


def test_places_name_stack_layer_and_kind() -> None:
    config, paths = MODELS["both"]
    places = [place_of(config, path) for path in paths]
    assert [place[:2] for place in places] == [("encoder", 0), ("encoder", 1), ("decoder", 0), ("decoder", 1), ("decoder", 1), ("decoder", 2), ("decoder", 2)]
    assert [place.kind for place in places] == [Attention, Attention, Attention, Attention, CrossAttention, Attention, CrossAttention]
    config, paths = MODELS["branches"]
    assert [place_of(config, path).kind for path in paths] == [Attention, Attention]


def test_the_first_layers_probabilities_are_the_softmax_of_its_scores(filled: Any, close: Any) -> None:
    config = decoder(Group(1, (Residual(Attention(2, mask=Causal())),)))
    model = config.make()
    variables, tokens = filled(model, *config.example()), np.arange(T)[None]
    (p,) = attention_probabilities(model, variables, tokens).values()
    params = jax.tree.map(np.asarray, variables["params"])
    layer = jax.tree.map(lambda a: a[0], params["stack"]["groups_0"]["layers"]["sublayers_0"]["layer"])
    (table,) = jax.tree.leaves(params["embedding"])
    q, k = (np.einsum("td,dnh->nth", table[:T], layer[name]["kernel"]) for name in ("query", "key"))
    e = np.exp(np.einsum("nth,nsh->nts", q, k) / 2) * np.tri(T)
    close(p[0], e / e.sum(-1, keepdims=True))


def test_those_of_latent_attention_are_shown_and_leave_the_sinks_their_share(filled: Any, close: Any) -> None:
    latent = LatentAttention(3, kv_rank=5, nope_head_dim=3, rope_head_dim=2, value_head_dim=7, mask=Causal(), position=Rope(), sinks=True)
    config = decoder(Group(2, (Residual(latent, pre=RMSNorm()),)))
    found, apart = (probabilities(config, filled, *layout) for layout in ((), (unstacked,)))
    assert [(place_of(config, path).kind, p.shape) for path, p in found.items()] == 2 * [(LatentAttention, (B, 3, T, T))]
    close(found, apart)
    sums = np.stack([np.asarray(p).sum(-1) for p in found.values()])
    assert (sums < 0.999).all()


def test_a_model_without_attention_has_none(filled: Any) -> None:
    assert probabilities(decoder(Group(2, (MLP,))), filled) == {}
