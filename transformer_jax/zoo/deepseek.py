"""DeepSeek V2 and V3: latent attention, many narrow experts and shared ones, routing by groups."""

import math
from collections.abc import Iterator
from typing import Any

from transformer_jax.layers import (
    Causal,
    Experts,
    Gated,
    LanguageModel,
    LatentAttention,
    NoHead,
    NoMlp,
    Residual,
    RMSNorm,
    Rope,
    SequenceClassifier,
    SigmoidRouter,
    SoftmaxRouter,
    Stack,
)
from transformer_jax.models import DecoderOnlyConfig
from transformer_jax.zoo import relatives
from transformer_jax.zoo.activations import THEIRS, activation
from transformer_jax.zoo.family import Family
from transformer_jax.zoo.heads import decoder_architectures
from transformer_jax.zoo.rope import rope, rope_parameters, rope_settings
from transformer_jax.zoo.settings import Settings
from transformer_jax.zoo.stacks import layers, places
from transformer_jax.zoo.tensors import Tensor, linear, norm

# What is meant where a config.json says nothing.
DEFAULTS: dict[str, dict[str, Any]] = {
    "deepseek_v2": {
        "first_k_dense_replace": 0, "moe_intermediate_size": 1407, "n_shared_experts": 2, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0,
        "norm_topk_prob": False, "max_position_embeddings": 2048,
    },
    "deepseek_v3": {
        "first_k_dense_replace": 3, "moe_intermediate_size": 2048, "n_shared_experts": 1, "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5,
        "norm_topk_prob": True, "max_position_embeddings": 4096,
    },
}  # fmt: skip


def config(s: Settings) -> DecoderOnlyConfig:
    default = DEFAULTS[s.model_type]
    scale = RMSNorm(s("rms_norm_eps", 1e-6))
    s.only("mlp_bias", False)
    s.only("moe_layer_freq", 1)
    s.only("rope_interleave", True)
    attention, mixture, dense = Residual(_attention(s), pre=scale), Residual(_mixture(s), pre=scale), Residual(relatives.mlp(s), pre=scale)
    first = s("first_k_dense_replace", default["first_k_dense_replace"])
    stack = [(attention, dense if n < first else mixture) for n in range(s("num_hidden_layers"))]
    return relatives.decoder(s, stack, scale, max_length=default["max_position_embeddings"])


def _attention(s: Settings) -> LatentAttention:
    bias, parameters = s("attention_bias", False), rope_parameters(s)
    position = rope(parameters, s)
    rank = s("q_lora_rank", 1536)
    if bias and rank is None:
        raise NotImplementedError("config.json: attention_bias: expected False where q_lora_rank is null, received True")
    nope, turning = s("qk_nope_head_dim", 128), s("qk_rope_head_dim", 64)
    return LatentAttention(
        s("num_attention_heads"), q_rank=rank, kv_rank=s("kv_lora_rank", 512), nope_head_dim=nope, rope_head_dim=turning,
        value_head_dim=s("v_head_dim", 128), mask=Causal(), position=position, qkv_bias=bias, out_bias=bias, scale=_scale(nope + turning, parameters),
        dropout=s("attention_dropout", 0.0),
    )  # fmt: skip


def _scale(features: int, parameters: dict[str, Any]) -> float:
    """Of q.k: YaRN's amplitude reaches the features that turn alone, and where mscale_all_dim is set all are to have it."""
    if all_dim := parameters.get("mscale_all_dim"):
        return float(features**-0.5 * (1 + 0.1 * all_dim * math.log(parameters["factor"])) ** 2)
    return features**-0.5


def _mixture(s: Settings) -> Experts:
    def given(name: str) -> Any:
        return s(name, DEFAULTS[s.model_type][name])

    width, shared = given("moe_intermediate_size"), given("n_shared_experts") or 0
    act = activation(s("hidden_act", "silu"))
    how: dict[str, Any] = {"groups": given("n_group") or 1, "top_groups": given("topk_group") or 1, "scale": float(given("routed_scaling_factor"))}
    top_k, renormalise = s("num_experts_per_tok"), given("norm_topk_prob")
    if s.model_type == "deepseek_v3":
        s.only("scoring_func", "sigmoid")
        s.only("topk_method", "noaux_tc")
        router: Any = SigmoidRouter(top_k, renormalise=renormalise, **how)
    else:
        s.only("scoring_func", "softmax")
        s.only("norm_topk_prob", False)
        method = s.only("topk_method", "greedy", "group_limited_greedy")
        if method == "greedy":
            how |= {"groups": 1, "top_groups": 1}
        router = SoftmaxRouter(top_k, renormalise=False, **how)
    return Experts(
        Gated(width, activation=act), num_experts=s.one_of("n_routed_experts", "num_experts"), router=router,
        shared=Gated(width * shared, activation=act) if shared else NoMlp(), load_balance_loss=relatives.load_balance(s, top_k),
    )  # fmt: skip


def settings(model: Any) -> dict[str, Any] | None:
    match model:
        case DecoderOnlyConfig(stack=Stack(final_norm=RMSNorm(eps)) as stack):
            dense, mixtures = relatives.mlps(stack)
            match layers(stack), mixtures:
                case [(Residual(LatentAttention(position=Rope() as position) as a), _), *_], [Experts(Gated() as expert) as mixture, *_]:
                    return {
                        "vocab_size": model.vocab_size,
                        "hidden_size": model.d_model,
                        "num_hidden_layers": len(layers(stack)),
                        "max_position_embeddings": model.max_length,
                        "rms_norm_eps": eps,
                        "hidden_act": THEIRS[expert.activation],
                        "intermediate_size": dense[0].d_ff if dense else expert.d_ff,
                        "first_k_dense_replace": len(dense),
                        **_attention_settings(a),
                        **_mixture_settings(mixture, expert.d_ff),
                        **rope_settings(position),
                    }
    return None


def _attention_settings(a: LatentAttention) -> dict[str, Any]:
    return {
        "num_attention_heads": a.num_heads,
        "num_key_value_heads": a.num_heads,
        "q_lora_rank": a.q_rank,
        "kv_lora_rank": a.kv_rank,
        "qk_nope_head_dim": a.nope_head_dim,
        "qk_rope_head_dim": a.rope_head_dim,
        "v_head_dim": a.value_head_dim,
        "attention_bias": a.qkv_bias,
        "attention_dropout": a.dropout,
    }


def _mixture_settings(mixture: Experts, width: int) -> dict[str, Any]:
    router: Any = mixture.router
    sigmoid = isinstance(router, SigmoidRouter)
    return {
        "moe_intermediate_size": width,
        "n_routed_experts": mixture.num_experts,
        "n_shared_experts": mixture.shared.d_ff // width if isinstance(mixture.shared, Gated) else None,
        "num_experts_per_tok": router.top_k,
        "n_group": router.groups,
        "topk_group": router.top_groups,
        "topk_method": "noaux_tc" if sigmoid else "greedy" if router.groups == 1 else "group_limited_greedy",
        "scoring_func": "sigmoid" if sigmoid else "softmax",
        "norm_topk_prob": router.renormalise,
        "routed_scaling_factor": router.scale,
        "router_aux_loss_coef": mixture.load_balance_loss / router.top_k,
        "output_router_logits": mixture.load_balance_loss > 0,
    }


def tensors(model: DecoderOnlyConfig) -> Iterator[Tensor]:
    yield from relatives.around(model)
    for n, (sublayers, (attention, mlp)) in enumerate(zip(places(model.stack), layers(model.stack))):
        at, place, a = f"model.layers.{n}.self_attn.", sublayers[0] / "layer", attention.layer
        assert isinstance(a, LatentAttention)
        # Their pairs of features that turn lie side by side, ours half a head apart.
        turned = (*range(0, a.rope_head_dim, 2), *range(1, a.rope_head_dim, 2))
        of_a_head = (*range(a.nope_head_dim), *(a.nope_head_dim + i for i in turned))
        yield from linear(f"{at}q_proj", place / "query", order=of_a_head)
        yield from linear(f"{at}q_a_proj", place / "query_down")
        yield from norm(f"{at}q_a_layernorm", place / "query_down_norm")
        yield from linear(f"{at}q_b_proj", place / "query_up", order=of_a_head)
        yield from linear(f"{at}kv_a_proj_with_mqa", place / "kv_down", order=(*range(a.kv_rank), *(a.kv_rank + i for i in turned)))
        yield from norm(f"{at}kv_a_layernorm", place / "kv_norm")
        yield from linear(f"{at}kv_b_proj", place / "kv_up")
        yield from linear(f"{at}o_proj", place / "out", inputs=2)
        yield from relatives.gated_tensors(f"model.layers.{n}.", sublayers[1] / "layer", mlp.layer)
        yield from relatives.norms_of(f"model.layers.{n}", sublayers)


IGNORED = {
    "num_key_value_heads": "every head has keys and values of its own",
    "head_dim": "qk_rope_head_dim says it again",
    "qk_head_dim": "the sum of qk_nope_head_dim and qk_rope_head_dim",
    **dict.fromkeys(("aux_loss_alpha", "seq_aux"), "of training"),
    "num_nextn_predict_layers": "layers that predict further tokens, which only training uses",
    "ep_size": "of the software that wrote or reads the file",
}


def _yarn(mscale: float) -> dict[str, Any]:
    return {
        "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1, "mscale": mscale, "mscale_all_dim": mscale,
    }  # fmt: skip


def _preset(**fields: Any) -> dict[str, Any]:
    return {
        "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "max_position_embeddings": 163840, "rms_norm_eps": 1e-6,
        "rope_theta": 10000, "tie_word_embeddings": False, **fields,
    }  # fmt: skip


V2 = Family(
    "DeepSeek V2",
    paper="arXiv:2405.04434",
    unusual="latent attention; shared experts beside routed ones, which are chosen within groups",
    model_type="deepseek_v2",
    architectures={"DeepseekV2ForCausalLM": LanguageModel, "DeepseekV2Model": NoHead, "DeepseekV2ForSequenceClassification": SequenceClassifier},
    prefix="model.",
    config=config,
    settings=settings,
    tensors=tensors,
    presets={
        "deepseek-v2-lite": _preset(
            vocab_size=102400, hidden_size=2048, intermediate_size=10944, moe_intermediate_size=1408, num_hidden_layers=27, num_attention_heads=16,
            q_lora_rank=None, n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=6, n_group=1, topk_group=1, topk_method="greedy",
            routed_scaling_factor=1.0, first_k_dense_replace=1, rope_scaling=_yarn(0.707),
        ),
        "deepseek-v2": _preset(
            vocab_size=102400, hidden_size=5120, intermediate_size=12288, moe_intermediate_size=1536, num_hidden_layers=60, num_attention_heads=128,
            q_lora_rank=1536, n_routed_experts=160, n_shared_experts=2, num_experts_per_tok=6, n_group=8, topk_group=3, topk_method="group_limited_greedy",
            routed_scaling_factor=16.0, first_k_dense_replace=1, rope_scaling=_yarn(0.707),
        ),
    },
    ignored=IGNORED,
    copies={"lm_head.weight": "model.embed_tokens.weight"},
)  # fmt: skip

V3 = Family(
    "DeepSeek V3",
    paper="arXiv:2412.19437",
    unusual="latent attention; sigmoid routing with a correction that no gradient reaches; weights in eight bits",
    model_type="deepseek_v3",
    architectures=decoder_architectures("DeepseekV3"),
    prefix="model.",
    config=config,
    settings=settings,
    tensors=tensors,
    presets={
        "deepseek-v3": _preset(
            vocab_size=129280, hidden_size=7168, intermediate_size=18432, moe_intermediate_size=2048, num_hidden_layers=61, num_attention_heads=128,
            q_lora_rank=1536, n_routed_experts=256, n_shared_experts=1, num_experts_per_tok=8, n_group=8, topk_group=4, norm_topk_prob=True,
            routed_scaling_factor=2.5, first_k_dense_replace=3, rope_scaling=_yarn(1.0),
        ),
    },
    ignored=IGNORED,
    dropped={r"model\.layers\.61\..*": "a layer that predicts a further token, which only training uses"},
    copies={"lm_head.weight": "model.embed_tokens.weight"},
)  # fmt: skip
