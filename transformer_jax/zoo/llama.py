"""Llama 2 to 3.2: RMSNorm, rotary positions, gated MLPs, grouped queries."""

from typing import Any

from transformer_jax.layers import Residual, RMSNorm
from transformer_jax.models import DecoderOnlyConfig
from transformer_jax.zoo import relatives
from transformer_jax.zoo.family import Family
from transformer_jax.zoo.heads import decoder_architectures
from transformer_jax.zoo.relatives import causal
from transformer_jax.zoo.rope import rope, rope_parameters, rope_settings
from transformer_jax.zoo.settings import Settings


def config(s: Settings) -> DecoderOnlyConfig:
    scale, bias = RMSNorm(s("rms_norm_eps", 1e-6)), s("attention_bias", False)
    attention = relatives.attention(s, mask=causal(None), position=rope(rope_parameters(s), s), qkv_bias=bias, out_bias=bias)
    layer = Residual(attention, pre=scale), Residual(relatives.mlp(s, bias=s("mlp_bias", False)), pre=scale)
    return relatives.decoder(s, [layer] * s("num_hidden_layers"), scale, max_length=2048)


def settings(model: Any) -> dict[str, Any] | None:
    match relatives.first_layer(model):
        case attention, mlp, position:
            return {
                **relatives.settings(model, attention, mlp),
                "attention_bias": attention.qkv_bias,
                "mlp_bias": mlp.bias,
                **rope_settings(position),
            }
    return None


def _llama2(hidden_size: int, intermediate_size: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "vocab_size": 32000, "hidden_size": hidden_size, "intermediate_size": intermediate_size, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    }  # fmt: skip


def _llama3(hidden_size: int, intermediate_size: int, layers: int, heads: int, head_dim: int = 128, factor: float | None = None) -> dict[str, Any]:
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return {
        "vocab_size": 128256, "hidden_size": hidden_size, "intermediate_size": intermediate_size, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": 8, "head_dim": head_dim, "max_position_embeddings": 131072 if factor else 8192, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
        "rope_scaling": scaling if factor else None, "tie_word_embeddings": factor == 32.0,
    }  # fmt: skip


FAMILY = Family(
    "Llama 2 to 3.2",
    paper="arXiv:2307.09288, arXiv:2407.21783",
    unusual="grouped queries; from 3.1 on rotary positions whose slow pairs are slowed down",
    model_type="llama",
    architectures=decoder_architectures("Llama"),
    prefix="model.",
    config=config,
    settings=settings,
    tensors=relatives.tensors,
    presets={
        "llama-2-7b": _llama2(4096, 11008, 32, 32, 32),
        "llama-2-13b": _llama2(5120, 13824, 40, 40, 40),
        "llama-2-70b": _llama2(8192, 28672, 80, 64, 8),
        "llama-3-8b": _llama3(4096, 14336, 32, 32),
        "llama-3-70b": _llama3(8192, 28672, 80, 64),
        "llama-3.1-8b": _llama3(4096, 14336, 32, 32, factor=8.0),
        "llama-3.1-70b": _llama3(8192, 28672, 80, 64, factor=8.0),
        "llama-3.1-405b": _llama3(16384, 53248, 126, 128, factor=8.0),
        "llama-3.2-1b": _llama3(2048, 8192, 16, 32, head_dim=64, factor=32.0),
        "llama-3.2-3b": _llama3(3072, 8192, 28, 24, factor=32.0),
    },
    dropped={r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq": "the frequencies of the rotary positions"},
    copies={"lm_head.weight": "model.embed_tokens.weight"},
)
