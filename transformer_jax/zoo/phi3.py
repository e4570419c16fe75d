"""Phi-3, 3.5 and 4-mini: Llama with query, key and value in one product and gate and up in another; LongRoPE where texts are long."""

from collections.abc import Iterator
from typing import Any

from transformer_jax.layers import Embedding, LongRopeScaling, NoScaling, Residual, RMSNorm, Rope
from transformer_jax.models import DecoderOnlyConfig
from transformer_jax.zoo import relatives
from transformer_jax.zoo.family import Family
from transformer_jax.zoo.heads import decoder_architectures
from transformer_jax.zoo.phi3_factors import PHI_3_MINI, PHI_4_MINI, PHI_35_MINI
from transformer_jax.zoo.relatives import causal, window
from transformer_jax.zoo.rope import rope, rope_parameters, rope_settings
from transformer_jax.zoo.settings import Settings
from transformer_jax.zoo.stacks import places
from transformer_jax.zoo.tensors import Tensor, linear


def config(s: Settings) -> DecoderOnlyConfig:
    for name, value in {"attention_bias": False, "mlp_bias": False, "lm_head_bias": False, "full_attn_mod": 1, "interpolate_factor": 1}.items():
        s.only(name, value)
    scale, drop = RMSNorm(s("rms_norm_eps", 1e-5)), s("resid_pdrop", 0.0)
    attention = relatives.attention(s, mask=causal(s("sliding_window", None)), position=_position(s))
    layer = Residual(attention, pre=scale, dropout=drop), Residual(relatives.mlp(s), pre=scale, dropout=drop)
    return relatives.decoder(s, [layer] * s("num_hidden_layers"), scale, max_length=4096, embedding=Embedding(dropout=s("embd_pdrop", 0.0)))


def _position(s: Settings) -> Rope:
    """Of any type but the usual one LongRoPE is meant: the first files call it "su" or "yarn". The original length stands beside the other fields."""
    given, original = rope_parameters(s, partial=True), s("original_max_position_embeddings", 4096)
    kinds = [given.pop(name, None) for name in ("rope_type", "type")]
    kind = kinds[0] or kinds[1] or "default"
    if kind in ("longrope", "su", "yarn"):
        # With a factor the model may be given another max_length, and so the factors for short texts, and keeps its amplitude.
        factor = given.get("factor") or max(s("max_position_embeddings", 4096) / original, 1.0)
        given, kind = {**given, "original_max_position_embeddings": original, "factor": factor}, "longrope"
    return rope({**given, "rope_type": kind}, s)


def settings(model: Any) -> dict[str, Any] | None:
    match relatives.first_layer(model):
        case attention, mlp, position if isinstance(position.scaling, NoScaling | LongRopeScaling):
            return {
                **relatives.settings(model, attention, mlp),
                "sliding_window": window(attention.mask),
                "resid_pdrop": model.stack.groups[0].sublayers[0].dropout,
                "embd_pdrop": model.embedding.dropout,
                **_position_settings(position, model.max_length),
                # Otherwise it is 32000, which a smaller table has not.
                **({} if model.vocab_size > 32000 else {"pad_token_id": None}),
            }
    return None


def _position_settings(position: Rope, max_length: int) -> dict[str, Any]:
    """As every version reads them: some want three fields in rope_scaling, and no others."""
    fields = {**rope_settings(position), "partial_rotary_factor": position.fraction}
    if (scaling := fields["rope_scaling"]) is None:
        return fields
    original = scaling.pop("original_max_position_embeddings")
    if scaling.get("factor") == max(max_length / original, 1.0):
        del scaling["factor"]
    return {**fields, "original_max_position_embeddings": original, "rope_scaling": {"type": scaling.pop("rope_type"), **scaling}}


def tensors(model: DecoderOnlyConfig) -> Iterator[Tensor]:
    yield from relatives.around(model)
    for n, sublayers in enumerate(places(model.stack)):
        at, (attention, mlp) = f"model.layers.{n}", (place / "layer" for place in sublayers)
        yield from linear(f"{at}.self_attn.qkv_proj", attention / "query", attention / "key", attention / "value")
        yield from linear(f"{at}.self_attn.o_proj", attention / "out", inputs=2)
        yield from linear(f"{at}.mlp.gate_up_proj", mlp / "gate", mlp / "up")
        yield from linear(f"{at}.mlp.down_proj", mlp / "down")
        yield from relatives.norms_of(at, sublayers)


def _preset(*, size: str = "mini", factors: dict[str, list[float]] | None = None, **fields: Any) -> dict[str, Any]:
    hidden_size, intermediate_size, layers, heads, kv_heads = {"mini": (3072, 8192, 32, 32, 32), "medium": (5120, 17920, 40, 40, 10)}[size]
    return {
        "vocab_size": 32064, "hidden_size": hidden_size, "intermediate_size": intermediate_size, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "max_position_embeddings": 131072 if factors else 4096,
        "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "sliding_window": 262144 if factors else 2047,
        "rope_scaling": {"type": "longrope", **factors} if factors else None, **fields,
    }  # fmt: skip


FAMILY = Family(
    "Phi-3, Phi-3.5 and Phi-4-mini",
    paper="arXiv:2404.14219, arXiv:2503.01743",
    unusual="fused products; long texts by factors found for each pair of features, for which the model's max_length decides here and each text's length there",
    model_type="phi3",
    architectures=decoder_architectures("Phi3"),
    prefix="model.",
    config=config,
    settings=settings,
    tensors=tensors,
    presets={
        "phi-3-mini-4k": _preset(),
        "phi-3-mini-128k": _preset(factors=PHI_3_MINI),
        "phi-3.5-mini": _preset(factors=PHI_35_MINI),
        "phi-3-medium-4k": _preset(size="medium"),
        "phi-4-mini": _preset(
            factors=PHI_4_MINI, vocab_size=200064, num_attention_heads=24, num_key_value_heads=8, partial_rotary_factor=0.75, tie_word_embeddings=True
        ),
    },
    copies={"lm_head.weight": "model.embed_tokens.weight"},
)  # fmt: skip
