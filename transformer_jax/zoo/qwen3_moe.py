"""Qwen3's mixtures of experts: Qwen3 with experts in all layers, or in some."""

from typing import Any

from transformer_jax.layers import Experts, Gated, Residual, RMSNorm, SoftmaxRouter
from transformer_jax.models import DecoderOnlyConfig
from transformer_jax.zoo import relatives
from transformer_jax.zoo.activations import activation
from transformer_jax.zoo.family import Family
from transformer_jax.zoo.heads import decoder_architectures
from transformer_jax.zoo.relatives import causal, window
from transformer_jax.zoo.rope import rope, rope_parameters, rope_settings
from transformer_jax.zoo.settings import Settings
from transformer_jax.zoo.stacks import layers


def config(s: Settings) -> DecoderOnlyConfig:
    scale, bias, top_k = RMSNorm(s("rms_norm_eps", 1e-6)), s("attention_bias", False), s("num_experts_per_tok", 8)
    mixture = Experts(
        Gated(s("moe_intermediate_size", 768), activation=activation(s("hidden_act", "silu"))), num_experts=s.one_of("num_experts", "num_local_experts"),
        router=SoftmaxRouter(top_k, renormalise=s("norm_topk_prob", False)), load_balance_loss=relatives.load_balance(s, top_k),
    )  # fmt: skip
    dense, step = relatives.mlp(s), s("decoder_sparse_step", 1)
    size, used = s("sliding_window", 4096), s("use_sliding_window", False)
    fields = {"position": rope(rope_parameters(s), s), "qk_norm": scale, "qkv_bias": bias, "out_bias": bias}
    stack = [
        (
            Residual(relatives.attention(s, kv_heads=4, mask=causal(size if used else None), **fields), pre=scale),
            Residual(dense if n in s("mlp_only_layers", ()) or (n + 1) % step else mixture, pre=scale),
        )
        for n in range(s("num_hidden_layers"))
    ]
    return relatives.decoder(s, stack, scale, max_length=32768)


def settings(model: Any) -> dict[str, Any] | None:
    match relatives.first_layer(model, Gated, Experts):
        case attention, mlp, position:
            dense, mixtures = relatives.mlps(model.stack)
            match mixtures:
                case [Experts(Gated(d_ff), router=SoftmaxRouter(top_k) as router) as mixture, *_]:
                    return {
                        **relatives.settings(model, attention, mlp),
                        "intermediate_size": dense[0].d_ff if dense else d_ff,
                        "moe_intermediate_size": d_ff,
                        "num_experts": mixture.num_experts,
                        "num_experts_per_tok": top_k,
                        "norm_topk_prob": router.renormalise,
                        "decoder_sparse_step": 1,
                        "mlp_only_layers": [n for n, (_, sublayer) in enumerate(layers(model.stack)) if not isinstance(sublayer.layer, Experts)],
                        "router_aux_loss_coef": mixture.load_balance_loss / top_k,
                        "output_router_logits": mixture.load_balance_loss > 0,
                        "attention_bias": attention.qkv_bias,
                        "use_sliding_window": window(attention.mask) is not None,
                        "sliding_window": window(attention.mask),
                        **rope_settings(position),
                    }
    return None


def _preset(hidden_size: int, experts: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "vocab_size": 151936, "hidden_size": hidden_size, "intermediate_size": 3 * hidden_size, "moe_intermediate_size": experts, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": 4, "head_dim": 128, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "attention_bias": False,
        "use_sliding_window": False, "tie_word_embeddings": False,
    }  # fmt: skip


FAMILY = Family(
    "Qwen3 mixtures",
    paper="arXiv:2505.09388",
    unusual="eight of 128 narrow experts work on each token",
    model_type="qwen3_moe",
    architectures=decoder_architectures("Qwen3Moe"),
    prefix="model.",
    config=config,
    settings=settings,
    tensors=relatives.tensors,
    presets={"qwen3-30b-a3b": _preset(2048, 768, 48, 32), "qwen3-235b-a22b": _preset(4096, 1536, 94, 64)},
    ignored={"max_window_layers": "a window is of all layers here, or of none"},
    copies={"lm_head.weight": "model.embed_tokens.weight"},
)
