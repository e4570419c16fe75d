"""gpt-oss: sinks, every second layer with a window, experts with clamped gates."""

from collections.abc import Iterator
from typing import Any

from transformer_jax.layers import Experts, Gated, Layer, Residual, RMSNorm, SoftmaxRouter
from transformer_jax.models import DecoderOnlyConfig
from transformer_jax.zoo import relatives
from transformer_jax.zoo.family import Family
from transformer_jax.zoo.heads import decoder_architectures
from transformer_jax.zoo.relatives import causal, window_settings, windows
from transformer_jax.zoo.rope import rope, rope_parameters, rope_settings
from transformer_jax.zoo.settings import Settings
from transformer_jax.zoo.tensors import Place, Tensor, linear

YARN = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 4096, "truncate": False}


def config(s: Settings) -> DecoderOnlyConfig:
    scale, bias, top_k = RMSNorm(s("rms_norm_eps", 1e-5)), s("attention_bias", True), s.one_of("num_experts_per_tok", "experts_per_token", default=4)
    s.only("hidden_act", "silu")  # which it says, and is not
    s.only("swiglu_alpha", 1.702)
    mlp = Experts(
        Gated(s("intermediate_size"), activation="quick_gelu", bias=True, limit=float(s("swiglu_limit", 7.0)), up_offset=1.0),
        num_experts=s("num_local_experts"), router=SoftmaxRouter(top_k, bias=True), load_balance_loss=relatives.load_balance(s, top_k),
    )  # fmt: skip
    fields = {"position": rope(rope_parameters(s, theta=150000.0, default=YARN), s), "qkv_bias": bias, "out_bias": bias, "sinks": True}
    every_second = [n % 2 == 0 for n in range(s("num_hidden_layers"))]
    stack = [
        (Residual(relatives.attention(s, head_dim=64, kv_heads=8, mask=causal(window), **fields), pre=scale), Residual(mlp, pre=scale))
        for window in windows(s, every_second, s("sliding_window", 128))
    ]
    return relatives.decoder(s, stack, scale, max_length=131072)


def settings(model: Any) -> dict[str, Any] | None:
    match relatives.first_layer(model, Experts):
        case attention, Experts(Gated(activation="quick_gelu", limit=float(limit)) as mlp, router=SoftmaxRouter(top_k)) as mixture, position:
            return {
                **relatives.settings(model, attention, mlp.replace(activation="silu")),
                "num_local_experts": mixture.num_experts,
                "num_experts_per_tok": top_k,
                "swiglu_limit": limit,
                "router_aux_loss_coef": mixture.load_balance_loss / top_k,
                "output_router_logits": mixture.load_balance_loss > 0,
                "attention_bias": attention.qkv_bias,
                **window_settings(model.stack),
                **rope_settings(position),
            }
    return None


def mlp_tensors(at: str, place: Place, mlp: Layer) -> Iterator[Tensor]:
    """Of all experts together, [E, in, out], the gate's and the other product's outputs in turn."""
    assert isinstance(mlp, Experts) and isinstance(mlp.mlp, Gated)
    yield from linear(f"{at}mlp.router", place / "router")
    for name, parts, groups in (("gate_up_proj", ("gate", "up"), mlp.mlp.d_ff), ("down_proj", ("down",), 1)):
        kernels, biases = ([place / f"mlp/{part}/{kind}" for part in parts] for kind in ("kernel", "bias"))
        yield Tensor(f"{at}mlp.experts.{name}", tuple(kernels), lead=1, inputs=1, transposed=False, groups=groups)
        yield Tensor(f"{at}mlp.experts.{name}_bias", tuple(biases), lead=1, groups=groups)


def tensors(model: DecoderOnlyConfig) -> Iterator[Tensor]:
    yield from relatives.tensors(model, mlp_tensors=mlp_tensors)


def _preset(layers: int, experts: int) -> dict[str, Any]:
    return {
        "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": layers, "num_attention_heads": 64, "num_key_value_heads": 8,
        "head_dim": 64, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "num_local_experts": experts, "num_experts_per_tok": 4,
        "sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * (layers // 2), "attention_bias": True, "swiglu_limit": 7.0,
        "rope_theta": 150000, "rope_scaling": YARN,
    }  # fmt: skip


FAMILY = Family(
    "gpt-oss",
    paper="arXiv:2508.10925",
    unusual="a learned sink in each head, windows in every second layer, experts with biases and clamped gates, weights in four bits",
    model_type="gpt_oss",
    architectures=decoder_architectures("GptOss"),
    prefix="model.",
    config=config,
    settings=settings,
    tensors=tensors,
    presets={"gpt-oss-20b": _preset(24, 32), "gpt-oss-120b": _preset(36, 128)},
    ignored={"initial_context_length": "rope_scaling's original_max_position_embeddings says it again"},
    copies={"lm_head.weight": "model.embed_tokens.weight"},
)
