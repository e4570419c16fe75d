"""Qwen3, the dense models: Qwen2 without its biases, with a norm of each head's queries and keys."""

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
    scale, bias = RMSNorm(s("rms_norm_eps", 1e-6)), s("attention_bias", False)
    mlp = Residual(relatives.mlp(s), pre=scale)
    fields = {"head_dim": 128, "position": rope(rope_parameters(s), s), "qk_norm": scale, "qkv_bias": bias, "out_bias": bias}
    layers = [(Residual(relatives.attention(s, kv_heads=32, mask=causal(window), **fields), pre=scale), mlp) for window in upper_windows(s)]
    return relatives.decoder(s, layers, scale, max_length=32768)


def settings(model: Any) -> dict[str, Any] | None:
    match relatives.first_layer(model):
        case attention, mlp, position:
            return {
                **relatives.settings(model, attention, mlp),
                "attention_bias": attention.qkv_bias,
                **upper_window_settings(model.stack),
                **rope_settings(position),
            }
    return None


def _preset(hidden_size: int, intermediate_size: int, layers: int, heads: int, *, tied: bool) -> dict[str, Any]:
    return {
        "vocab_size": 151936, "hidden_size": hidden_size, "intermediate_size": intermediate_size, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "attention_bias": False, "use_sliding_window": False, "tie_word_embeddings": tied,
    }  # fmt: skip


FAMILY = Family(
    "Qwen3",
    paper="arXiv:2505.09388",
    unusual="queries and keys are normed head by head, before they turn",
    model_type="qwen3",
    architectures=decoder_architectures("Qwen3"),
    prefix="model.",
    config=config,
    settings=settings,
    tensors=relatives.tensors,
    presets={
        "qwen3-0.6b": _preset(1024, 3072, 28, 16, tied=True),
        "qwen3-1.7b": _preset(2048, 6144, 28, 16, tied=True),
        "qwen3-4b": _preset(2560, 9728, 36, 32, tied=True),
        "qwen3-8b": _preset(4096, 12288, 36, 32, tied=False),
        "qwen3-14b": _preset(5120, 17408, 40, 40, tied=False),
        "qwen3-32b": _preset(5120, 25600, 64, 64, tied=False),
    },
    copies={"lm_head.weight": "model.embed_tokens.weight"},
)
