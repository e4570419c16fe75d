"""OLMo 2: norms after the sublayers and none before; queries and keys are normed over all heads at once."""

from collections.abc import Iterator
from typing import Any

from transformer_jax.layers import LanguageModel, NoHead, Residual, RMSNorm, SequenceClassifier
from transformer_jax.models import DecoderOnlyConfig
from transformer_jax.zoo import relatives
from transformer_jax.zoo.family import Family
from transformer_jax.zoo.relatives import causal
from transformer_jax.zoo.rope import rope, rope_parameters, rope_settings
from transformer_jax.zoo.settings import Settings
from transformer_jax.zoo.tensors import Tensor


def config(s: Settings) -> DecoderOnlyConfig:
    scale, bias = RMSNorm(s("rms_norm_eps", 1e-5)), s("attention_bias", False)
    attention = relatives.attention(
        s, mask=causal(None), position=rope(rope_parameters(s), s), qk_norm=scale, qk_norm_over="heads", qkv_bias=bias, out_bias=bias
    )  # fmt: skip
    layer = Residual(attention, post=scale), Residual(relatives.mlp(s), post=scale)
    return relatives.decoder(s, [layer] * s("num_hidden_layers"), scale, max_length=2048)


def settings(model: Any) -> dict[str, Any] | None:
    match relatives.first_layer(model):
        case attention, mlp, position:
            return {**relatives.settings(model, attention, mlp), "attention_bias": attention.qkv_bias, **rope_settings(position)}
    return None


def tensors(model: DecoderOnlyConfig) -> Iterator[Tensor]:
    return relatives.tensors(model, relatives.PRE_AND_POST)


def _preset(hidden_size: int, intermediate_size: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "vocab_size": 100352, "hidden_size": hidden_size, "intermediate_size": intermediate_size, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 5e5,
    }  # fmt: skip


FAMILY = Family(
    "OLMo 2",
    paper="arXiv:2501.00656",
    unusual="norms of what a sublayer gives, not of what it takes; of all heads' queries at once, and of all heads' keys",
    model_type="olmo2",
    architectures={"Olmo2ForCausalLM": LanguageModel, "Olmo2Model": NoHead, "Olmo2ForSequenceClassification": SequenceClassifier},
    prefix="model.",
    config=config,
    settings=settings,
    tensors=tensors,
    presets={
        "olmo-2-0425-1b": _preset(2048, 8192, 16, 16, 16),
        "olmo-2-1124-7b": _preset(4096, 11008, 32, 32, 32),
        "olmo-2-1124-13b": _preset(5120, 13824, 40, 40, 40),
        "olmo-2-0325-32b": _preset(5120, 27648, 64, 40, 8),
    },
    copies={"lm_head.weight": "model.embed_tokens.weight"},
)
