"""Mistral 7B: Llama whose queries see a window."""

from typing import Any

from transformer_jax.layers import Residual, RMSNorm
from transformer_jax.models import DecoderOnlyConfig
from transformer_jax.zoo import relatives
from transformer_jax.zoo.family import Family
from transformer_jax.zoo.heads import decoder_architectures
from transformer_jax.zoo.relatives import causal, window
from transformer_jax.zoo.rope import rope, rope_parameters, rope_settings
from transformer_jax.zoo.settings import Settings


def config(s: Settings) -> DecoderOnlyConfig:
    scale = RMSNorm(s("rms_norm_eps", 1e-6))
    attention = relatives.attention(s, kv_heads=8, mask=causal(s("sliding_window", 4096)), position=rope(rope_parameters(s), s))
    layer = Residual(attention, pre=scale), Residual(relatives.mlp(s), pre=scale)
    return relatives.decoder(s, [layer] * s("num_hidden_layers"), scale, max_length=131072)


def settings(model: Any) -> dict[str, Any] | None:
    match relatives.first_layer(model):
        case attention, mlp, position:
            return {**relatives.settings(model, attention, mlp), "sliding_window": window(attention.mask), **rope_settings(position)}
    return None


def _preset(vocab_size: int, rope_theta: float, sliding_window: int | None) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": rope_theta, "sliding_window": sliding_window,
    }  # fmt: skip


FAMILY = Family(
    "Mistral 7B",
    paper="arXiv:2310.06825",
    unusual="a window of 4096 keys in every layer, which later versions have given up",
    model_type="mistral",
    architectures=decoder_architectures("Mistral"),
    prefix="model.",
    config=config,
    settings=settings,
    tensors=relatives.tensors,
    presets={
        "mistral-7b": _preset(32000, 1e4, 4096),
        "mistral-7b-v0.3": _preset(32768, 1e6, None),
    },
    copies={"lm_head.weight": "model.embed_tokens.weight"},
)
