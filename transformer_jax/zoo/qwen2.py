"""Qwen2 and Qwen2.5: Llama whose queries, keys and values have biases, with windows in the upper layers where they are asked for."""

from typing import Any

from transformer_jax.layers import Residual, RMSNorm
from transformer_jax.models import DecoderOnlyConfig
from transformer_jax.zoo import relatives
from transformer_jax.zoo.family import Family
from transformer_jax.zoo.heads import decoder_architectures
from transformer_jax.zoo.relatives import causal, upper_window_settings, upper_windows
from transformer_jax.zoo.rope import rope, rope_parameters, rope_settings
from transformer_jax.zoo.settings import Settings


def config(s: Settings) -> DecoderOnlyConfig:
    s.only("use_mrope", False)
    scale, position = RMSNorm(s("rms_norm_eps", 1e-6)), rope(rope_parameters(s), s)
    mlp = Residual(relatives.mlp(s), pre=scale)
    masks = [causal(window) for window in upper_windows(s)]
    layers = [(Residual(relatives.attention(s, kv_heads=32, mask=mask, position=position, qkv_bias=True), pre=scale), mlp) for mask in masks]
    return relatives.decoder(s, layers, scale, max_length=32768)


def settings(model: Any) -> dict[str, Any] | None:
    match relatives.first_layer(model):
        case attention, mlp, position:
            return {**relatives.settings(model, attention, mlp), **upper_window_settings(model.stack), **rope_settings(position)}
    return None


def _preset(
    hidden_size: int, intermediate_size: int, layers: int, heads: int, kv_heads: int, vocab_size: int, length: int = 131072, eps: float = 1e-6
) -> dict[str, Any]:  # fmt: skip
    return {
        "vocab_size": vocab_size, "hidden_size": hidden_size, "intermediate_size": intermediate_size, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "max_position_embeddings": length, "rms_norm_eps": eps, "rope_theta": 1e6,
        "use_sliding_window": False, "tie_word_embeddings": vocab_size == 151936,
    }  # fmt: skip


FAMILY = Family(
    "Qwen2 and Qwen2.5",
    paper="arXiv:2407.10671, arXiv:2412.15115",
    unusual="biases of queries, keys and values, and no others",
    model_type="qwen2",
    architectures=decoder_architectures("Qwen2"),
    prefix="model.",
    config=config,
    settings=settings,
    tensors=relatives.tensors,
    presets={
        "qwen2-0.5b": _preset(896, 4864, 24, 14, 2, 151936),
        "qwen2-1.5b": _preset(1536, 8960, 28, 12, 2, 151936),
        "qwen2-7b": _preset(3584, 18944, 28, 28, 4, 152064),
        "qwen2-72b": _preset(8192, 29568, 80, 64, 8, 152064, eps=1e-5),
        "qwen2.5-0.5b": _preset(896, 4864, 24, 14, 2, 151936, 32768),
        "qwen2.5-1.5b": _preset(1536, 8960, 28, 12, 2, 151936),
        "qwen2.5-3b": _preset(2048, 11008, 36, 16, 2, 151936, 32768),
        "qwen2.5-7b": _preset(3584, 18944, 28, 28, 4, 152064),
        "qwen2.5-14b": _preset(5120, 13824, 48, 40, 8, 152064, eps=1e-5),
        "qwen2.5-32b": _preset(5120, 27648, 64, 40, 8, 152064, eps=1e-5),
        "qwen2.5-72b": _preset(8192, 29568, 80, 64, 8, 152064, eps=1e-5),
    },
    copies={"lm_head.weight": "model.embed_tokens.weight"},
)
