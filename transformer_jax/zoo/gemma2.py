"""Gemma 2: layers with and without a window in turn, norms before and after each sublayer, capped scores and logits."""

from collections.abc import Iterator, Sequence
from typing import Any

from transformer_jax.layers import Attention, Embedding, Gated, Residual, RMSNorm, Softcap
from transformer_jax.models import DecoderOnlyConfig
from transformer_jax.zoo import relatives
from transformer_jax.zoo.family import Family
from transformer_jax.zoo.heads import decoder_architectures
from transformer_jax.zoo.relatives import causal, window_settings, windows
from transformer_jax.zoo.rope import rope, rope_parameters, rope_settings
from transformer_jax.zoo.settings import Settings
from transformer_jax.zoo.tensors import Tensor


def config(s: Settings) -> DecoderOnlyConfig:
    position, sliding = rope(rope_parameters(s), s), [n % 2 == 0 for n in range(s("num_hidden_layers"))]
    cap = s("attn_logit_softcapping", 50.0)
    fields = {"position": position, "score": () if cap is None else (Softcap(cap),)}
    attentions = [attention(s, mask=causal(window), **fields) for window in windows(s, sliding, s("sliding_window", 4096))]
    return decoder(s, attentions, max_length=8192, cap=30.0)


def attention(s: Settings, **fields: Any) -> Attention:
    """Gemma 2's and 3's; `fields` are those that differ."""
    bias, scale = s("attention_bias", False), s("query_pre_attn_scalar", 256) ** -0.5
    return relatives.attention(s, head_dim=256, kv_heads=4, qkv_bias=bias, out_bias=bias, scale=scale, **fields)


def decoder(s: Settings, attentions: Sequence[Attention], *, max_length: int, cap: float | None) -> DecoderOnlyConfig:
    """Gemma 2's and 3's. `cap` is the family's default for logits."""
    s.only("use_bidirectional_attention", None, False)
    scale = norm(s)
    mlp = Residual(relatives.mlp(s, name="hidden_activation", default="gelu_pytorch_tanh"), pre=scale, post=scale)
    return relatives.decoder(
        s, [(Residual(attention, pre=scale, post=scale), mlp) for attention in attentions], scale, max_length=max_length, tied=True,
        embedding=Embedding(scale=True), softcap=s("final_logit_softcapping", cap),
    )  # fmt: skip


def norm(s: Settings) -> RMSNorm:
    """Gemma's, whose scales are stored less 1."""
    return RMSNorm(s("rms_norm_eps", 1e-6), offset=1.0)


def settings(model: Any) -> dict[str, Any] | None:
    match relatives.first_layer(model):
        case attention, mlp, position:
            caps = [score.cap for score in attention.score if isinstance(score, Softcap)]
            cap = {"attn_logit_softcapping": caps[0] if caps else None}
            return {**common_settings(model, attention, mlp), **cap, **rope_settings(position)}
    return None


def common_settings(model: DecoderOnlyConfig, attention: Attention, mlp: Gated) -> dict[str, Any]:
    """Gemma 2's and 3's, but for caps of scores and positions."""
    fields = {**relatives.settings(model, attention, mlp, name="hidden_activation"), **window_settings(model.stack)}
    return {
        **fields,
        "sliding_window": fields["sliding_window"] or 4096,  # wanted even where no layer has one
        "attention_bias": attention.qkv_bias,
        "query_pre_attn_scalar": fields["head_dim"] if attention.scale is None else round(attention.scale**-2),
        "final_logit_softcapping": getattr(model.head, "softcap", None),
    }


def tensors(model: DecoderOnlyConfig) -> Iterator[Tensor]:
    return relatives.tensors(model, relatives.PRE_AND_POST)


def _preset(hidden_size: int, intermediate_size: int, layers: int, heads: int, *, head_dim: int = 256, scalar: int = 256) -> dict[str, Any]:
    return {
        "vocab_size": 256000, "hidden_size": hidden_size, "intermediate_size": intermediate_size, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": heads // 2, "head_dim": head_dim, "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "sliding_window": 4096, "query_pre_attn_scalar": scalar,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    }  # fmt: skip


FAMILY = Family(
    "Gemma 2",
    paper="arXiv:2408.00118",
    unusual="norms before and after each sublayer, every second layer with a window, capped scores and logits",
    model_type="gemma2",
    architectures=decoder_architectures("Gemma2"),
    prefix="model.",
    config=config,
    settings=settings,
    tensors=tensors,
    presets={
        "gemma-2-2b": _preset(2304, 9216, 26, 8),
        "gemma-2-9b": _preset(3584, 14336, 42, 16),
        "gemma-2-27b": _preset(4608, 36864, 46, 32, head_dim=128, scalar=144),
    },
    ignored={
        "hidden_act": "hidden_activation is what counts",
        "sliding_window_size": "sliding_window says it again",
        "cache_implementation": "of generating text, not of the model",
    },
    copies={"lm_head.weight": "model.embed_tokens.weight"},
)
