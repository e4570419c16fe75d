"""T5, T5 v1.1 and Flan-T5: an encoder and a decoder whose positions are a table of biases for each, scores without a scale, RMSNorm before each sublayer.

Published dropout also falls on what leaves the final norms; ours does not.
"""

from collections.abc import Iterator
from typing import Any

from transformer_jax.layers import (
    Attention,
    Causal,
    CrossAttention,
    Dense,
    Embedding,
    Gated,
    Group,
    Head,
    LanguageModel,
    NoHead,
    NoMask,
    RelativeBias,
    Residual,
    RMSNorm,
    Stack,
    T5Init,
)
from transformer_jax.models import EncoderDecoderConfig, EncoderOnlyConfig
from transformer_jax.zoo.activations import OURS, THEIRS, activation
from transformer_jax.zoo.family import Family
from transformer_jax.zoo.settings import Settings
from transformer_jax.zoo.stacks import layers, places
from transformer_jax.zoo.tensors import Place, Tensor, linear, norm, table

_KINDS = [f"{kind}{name}" for kind in ("", "gated-") for name in OURS]


def config(s: Settings) -> EncoderDecoderConfig | EncoderOnlyConfig:
    d_model, d_kv, rate, num_layers = s("d_model"), s("d_kv"), s("dropout_rate", 0.1), s("num_layers")
    s.only("is_decoder", False)
    scale, embedding = RMSNorm(s("layer_norm_epsilon", 1e-6)), Embedding(dropout=rate)
    heads = {"num_heads": s("num_heads"), "head_dim": d_kv, "scale": 1.0, "dropout": rate}
    buckets, distance = s("relative_attention_num_buckets", 32), s("relative_attention_max_distance", 128)
    mlp = _mlp(s, rate)

    def stack(depth: int, *sublayers: Any, bidirectional: bool) -> Stack:
        block = tuple(Residual(layer, pre=scale, dropout=rate) for layer in (*sublayers, mlp))
        bias = RelativeBias(buckets, max_distance=distance, bidirectional=bidirectional)
        return Stack((Group(depth, block),), final_norm=scale, score=(bias,))

    encoder = stack(num_layers, Attention(**heads, mask=NoMask()), bidirectional=True)
    decoder = stack(s("num_decoder_layers", None) or num_layers, Attention(**heads, mask=Causal()), CrossAttention(**heads), bidirectional=False)
    head = _head(s, d_model)
    sizes = {"d_model": d_model, "max_length": s("n_positions", 512), "initialization": T5Init(d_kv)}
    if s("architectures", None) == ["T5EncoderModel"]:
        return EncoderOnlyConfig(s("vocab_size"), **sizes, stack=encoder, embedding=embedding, head=head)
    return EncoderDecoderConfig(
        s("vocab_size"), **sizes, encoder=encoder, decoder=decoder, source_embedding=embedding, target_embedding=embedding, head=head
    )  # fmt: skip


def _mlp(s: Settings, rate: float) -> Dense | Gated:
    kind, _, name = s.only("feed_forward_proj", "relu", *_KINDS).rpartition("-")
    gated, name = s.only("is_gated_act", kind == "gated"), s.only("dense_act_fn", "gelu_new" if (kind, name) == ("gated", "gelu") else name)
    return (Gated if gated else Dense)(s("d_ff"), activation=activation(name), dropout=rate)


def _head(s: Settings, d_model: int) -> Head:
    tied = s("tie_word_embeddings", True)
    scaled = s("scale_decoder_outputs", tied)
    return NoHead() if s.head is NoHead else LanguageModel(tied=tied, scale=d_model**-0.5 if scaled else 1.0)


def settings(model: Any) -> dict[str, Any] | None:
    kind: dict[str, Any]
    match model:
        case EncoderDecoderConfig(encoder=Stack(score=(RelativeBias(buckets) as bias,))):
            encoder, decoder, embedding = layers(model.encoder), layers(model.decoder, 3), model.source_embedding
            kind = {"num_decoder_layers": len(decoder)}
        case EncoderOnlyConfig(stack=Stack(score=(RelativeBias(buckets) as bias,))):
            encoder, embedding, kind = layers(model.stack), model.embedding, {"architectures": ["T5EncoderModel"], "is_encoder_decoder": False}
        case _:
            return None
    match encoder[:1]:
        case [(Residual(Attention() as attention, pre=RMSNorm(eps)), Residual(Dense() | Gated() as mlp))]:
            name = "gelu" if mlp == Gated(mlp.d_ff, activation="gelu_tanh", dropout=mlp.dropout) else THEIRS[mlp.activation]
            return {
                "vocab_size": model.vocab_size,
                "d_model": model.d_model,
                "d_kv": attention.head_dim,
                "d_ff": mlp.d_ff,
                "num_layers": len(encoder),
                "num_heads": attention.num_heads,
                "relative_attention_num_buckets": buckets,
                "relative_attention_max_distance": bias.max_distance,
                "feed_forward_proj": f"gated-{name}" if isinstance(mlp, Gated) else name,
                "dropout_rate": embedding.dropout,
                "layer_norm_epsilon": eps,
                "n_positions": model.max_length,
                "is_encoder_decoder": True,
                "pad_token_id": 0,
                "eos_token_id": 1,
                "decoder_start_token_id": 0,
                **({"scale_decoder_outputs": model.head.scale != 1} if isinstance(model.head, LanguageModel) else {}),
                **kind,
            }
    return None


def tensors(model: EncoderDecoderConfig | EncoderOnlyConfig) -> Iterator[Tensor]:
    if isinstance(model, EncoderOnlyConfig):
        yield table("shared.weight", Place(("embedding", "embedding")))
        yield from _stack("encoder", model.stack, 2, "stack")
        return
    yield table("shared.weight", Place(("source_embedding", "embedding")))
    yield from _stack("encoder", model.encoder, 2, "encoder")
    yield from _stack("decoder", model.decoder, 3, "decoder")
    yield from linear("lm_head", Place(("head",)))


def _stack(name: str, stack: Stack, each: int, ours: str) -> Iterator[Tensor]:
    attentions = ("SelfAttention", "EncDecAttention")[: each - 1]
    yield Tensor(f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (Place((ours, "scores_0", "table")),), inputs=1)
    for n, sublayers in enumerate(places(stack, each, ours)):
        for m, (attention, part) in enumerate(zip(sublayers, attentions)):
            at = f"{name}.block.{n}.layer.{m}"
            yield from norm(f"{at}.layer_norm", attention / "pre")
            for theirs, mine in (("q", "query"), ("k", "key"), ("v", "value")):
                yield from linear(f"{at}.{part}.{theirs}", attention / "layer" / mine)
            yield from linear(f"{at}.{part}.o", attention / "layer/out", inputs=2)
        at, mlp = f"{name}.block.{n}.layer.{each - 1}", sublayers[-1]
        gated = isinstance(stack.groups[0].sublayers[-1].layer, Gated)
        yield from norm(f"{at}.layer_norm", mlp / "pre")
        for theirs, mine in (("wi_0", "gate"), ("wi_1", "up"), ("wo", "down")) if gated else (("wi", "up"), ("wo", "down")):
            yield from linear(f"{at}.DenseReluDense.{theirs}", mlp / "layer" / mine)
    yield from norm(f"{name}.final_layer_norm", Place((ours, "final_norm")))


def _preset(d_model: int, d_ff: int, num_layers: int, num_heads: int, d_kv: int = 64) -> dict[str, Any]:
    return {"vocab_size": 32128, "d_model": d_model, "d_ff": d_ff, "num_layers": num_layers, "num_heads": num_heads, "d_kv": d_kv, "n_positions": 512}


def _preset11(d_model: int, d_ff: int, num_layers: int, num_heads: int) -> dict[str, Any]:
    return {**_preset(d_model, d_ff, num_layers, num_heads), "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


FAMILY = Family(
    "T5, T5 v1.1 and Flan-T5",
    paper="Raffel et al., arXiv:1910.10683; Flan-T5: arXiv:2210.11416",
    unusual="a table of relative positions for each stack; scores without a scale; logits of the tied head times d_model^-0.5",
    model_type="t5",
    architectures={
        "T5ForConditionalGeneration": LanguageModel, "T5WithLMHeadModel": LanguageModel, "T5Model": NoHead, "T5EncoderModel": NoHead,
    },
    prefix="",
    config=config,
    settings=settings,
    tensors=tensors,
    presets={
        "t5-small": _preset(512, 2048, 6, 8),
        "t5-base": _preset(768, 3072, 12, 12),
        "t5-large": _preset(1024, 4096, 24, 16),
        "t5-3b": _preset(1024, 16384, 24, 32, d_kv=128),
        "t5-11b": _preset(1024, 65536, 24, 128, d_kv=128),
        "t5-v1_1-small": _preset11(512, 1024, 8, 6),
        "t5-v1_1-base": _preset11(768, 2048, 12, 12),
        "t5-v1_1-large": _preset11(1024, 2816, 24, 16),
        "t5-v1_1-xl": _preset11(2048, 5120, 24, 32),
        "t5-v1_1-xxl": _preset11(4096, 10240, 24, 64),
        "flan-t5-small": _preset11(512, 1024, 8, 6),
        "flan-t5-base": _preset11(768, 2048, 12, 12),
        "flan-t5-large": _preset11(1024, 2816, 24, 16),
        "flan-t5-xl": _preset11(2048, 5120, 24, 32),
        "flan-t5-xxl": _preset11(4096, 10240, 24, 64),
    },
    ignored={
        "initializer_factor": "of first values",
        "classifier_dropout": "of other heads",
    },
    dropped={r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight": "attention to the encoder has no relative positions"},
    copies={"lm_head.weight": "shared.weight", "encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight"},
)
