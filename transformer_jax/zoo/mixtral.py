"""Mixtral: Mistral whose MLP is two of eight experts."""

from collections.abc import Iterator
from typing import Any

from transformer_jax.layers import Experts, Gated, Layer, Residual, RMSNorm, SoftmaxRouter
from transformer_jax.models import DecoderOnlyConfig
from transformer_jax.zoo import relatives
from transformer_jax.zoo.family import Family
from transformer_jax.zoo.heads import decoder_architectures
from transformer_jax.zoo.relatives import causal, gated, window
from transformer_jax.zoo.rope import rope, rope_parameters, rope_settings
from transformer_jax.zoo.settings import Settings
from transformer_jax.zoo.tensors import Place, Tensor, linear

EXPERT = {"gate": "w1", "up": "w3", "down": "w2"}


def config(s: Settings) -> DecoderOnlyConfig:
    scale, top_k = RMSNorm(s("rms_norm_eps", 1e-5)), s("num_experts_per_tok", 2)
    s.only("router_jitter_noise", 0.0)
    attention = relatives.attention(s, kv_heads=8, mask=causal(s("sliding_window", None)), position=rope(rope_parameters(s, theta=1e6), s))
    mlp = Experts(
        relatives.mlp(s), num_experts=s("num_local_experts", 8), router=SoftmaxRouter(top_k), load_balance_loss=relatives.load_balance(s, top_k)
    )  # fmt: skip
    layer = Residual(attention, pre=scale), Residual(mlp, pre=scale)
    return relatives.decoder(s, [layer] * s("num_hidden_layers"), scale, max_length=131072)


def settings(model: Any) -> dict[str, Any] | None:
    match relatives.first_layer(model, Experts):
        case attention, Experts(Gated(), router=SoftmaxRouter(top_k)) as mlp, position:
            return {
                **relatives.settings(model, attention, mlp),
                "num_local_experts": mlp.num_experts,
                "num_experts_per_tok": top_k,
                "sliding_window": window(attention.mask),
                "router_aux_loss_coef": mlp.load_balance_loss / top_k,
                "output_router_logits": mlp.load_balance_loss > 0,
                **rope_settings(position),
            }
    return None


def mlp_tensors(at: str, place: Place, mlp: Layer) -> Iterator[Tensor]:
    assert isinstance(mlp, Experts)
    yield from linear(f"{at}block_sparse_moe.gate", place / "router")
    for n in range(mlp.num_experts):
        yield from gated(f"{at}block_sparse_moe.experts.{n}.", place[n] / "mlp", EXPERT)


def tensors(model: DecoderOnlyConfig) -> Iterator[Tensor]:
    yield from relatives.tensors(model, mlp_tensors=mlp_tensors)


def _preset(hidden_size: int, intermediate_size: int, layers: int, heads: int, max_length: int) -> dict[str, Any]:
    return {
        "vocab_size": 32000, "hidden_size": hidden_size, "intermediate_size": intermediate_size, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": 8, "max_position_embeddings": max_length, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "num_local_experts": 8,
        "num_experts_per_tok": 2, "sliding_window": None, "tie_word_embeddings": False,
    }  # fmt: skip


FAMILY = Family(
    "Mixtral",
    paper="arXiv:2401.04088",
    unusual="two of eight experts work on each token",
    model_type="mixtral",
    architectures=decoder_architectures("Mixtral"),
    prefix="model.",
    config=config,
    settings=settings,
    tensors=tensors,
    presets={"mixtral-8x7b": _preset(4096, 14336, 32, 32, 32768), "mixtral-8x22b": _preset(6144, 16384, 56, 48, 65536)},
    copies={"lm_head.weight": "model.embed_tokens.weight"},
)
