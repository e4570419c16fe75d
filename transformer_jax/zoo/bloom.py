"""BLOOM: ALiBi in place of positions, and a norm of the embeddings."""

from collections.abc import Iterator
from typing import Any

from transformer_jax.layers import Alibi, Attention, Causal, Dense, Embedding, Group, LayerNorm, NormalInit, Residual, Stack
from transformer_jax.models import DecoderOnlyConfig
from transformer_jax.zoo.family import Family
from transformer_jax.zoo.heads import decoder_architectures, decoder_head, decoder_head_tensors
from transformer_jax.zoo.settings import Settings
from transformer_jax.zoo.stacks import places
from transformer_jax.zoo.tensors import Place, Tensor, linear, norm, table


def config(s: Settings) -> DecoderOnlyConfig:
    scale, drop, d_model = LayerNorm(s("layer_norm_epsilon", 1e-5)), s("hidden_dropout", 0.0), s.one_of("hidden_size", "n_embed")
    s.only("apply_residual_connection_post_layernorm", False)
    s.only("n_inner", None, 4 * d_model)
    heads = s.one_of("n_head", "num_attention_heads")
    attention = Attention(heads, mask=Causal(), score=(Alibi(),), qkv_bias=True, out_bias=True, dropout=s("attention_dropout", 0.0))
    block = Residual(attention, pre=scale, dropout=drop), Residual(Dense(4 * d_model, activation="gelu_tanh", bias=True), pre=scale, dropout=drop)
    return DecoderOnlyConfig(
        s("vocab_size"), d_model=d_model, max_length=s("seq_length", 2048),
        stack=Stack((Group(s.one_of("n_layer", "num_hidden_layers"), block),), final_norm=scale), embedding=Embedding(norm=scale),
        head=decoder_head(s, tied=True, dropout=drop), initialization=NormalInit(s("initializer_range", 0.02)),
    )  # fmt: skip


def settings(model: Any) -> dict[str, Any] | None:
    match model:
        case DecoderOnlyConfig(
            stack=Stack((Group(layers, (Residual(Attention(score=(Alibi(),)) as attention, pre=LayerNorm(eps), dropout=drop), Residual())),)),
        ):  # fmt: skip
            return {
                "vocab_size": model.vocab_size,
                "hidden_size": model.d_model,
                "n_layer": layers,
                "n_head": attention.num_heads,
                "seq_length": model.max_length,
                "layer_norm_epsilon": eps,
                "hidden_dropout": drop,
                "attention_dropout": attention.dropout,
            }
    return None


def tensors(model: DecoderOnlyConfig) -> Iterator[Tensor]:
    yield table("transformer.word_embeddings.weight", Place(("embedding", "embedding")))
    yield from norm("transformer.word_embeddings_layernorm", Place(("embedding", "norm")))
    for n, (attention, mlp) in enumerate(places(model.stack)):
        at, heads = f"transformer.h.{n}", attention / "layer"
        yield from norm(f"{at}.input_layernorm", attention / "pre")
        yield from linear(f"{at}.self_attention.query_key_value", heads / "query", heads / "key", heads / "value", groups=model.stack.num_heads)
        yield from linear(f"{at}.self_attention.dense", heads / "out", inputs=2)
        yield from norm(f"{at}.post_attention_layernorm", mlp / "pre")
        yield from linear(f"{at}.mlp.dense_h_to_4h", mlp / "layer/up")
        yield from linear(f"{at}.mlp.dense_4h_to_h", mlp / "layer/down")
    yield from norm("transformer.ln_f", Place(("stack", "final_norm")))
    yield from decoder_head_tensors(model.head, tokens="classifier")


def _preset(hidden_size: int, n_layer: int, n_head: int) -> dict[str, Any]:
    return {"vocab_size": 250880, "hidden_size": hidden_size, "n_layer": n_layer, "n_head": n_head, "seq_length": 2048}


FAMILY = Family(
    "BLOOM",
    paper="arXiv:2211.05100",
    unusual="ALiBi in place of positions; a norm of the embeddings; a head's query, key and value lie together",
    model_type="bloom",
    architectures=decoder_architectures("Bloom"),
    prefix="transformer.",
    config=config,
    settings=settings,
    tensors=tensors,
    presets={
        "bloom-560m": _preset(1024, 24, 16),
        "bloom-1b1": _preset(1536, 24, 16),
        "bloom-1b7": _preset(2048, 24, 16),
        "bloom-3b": _preset(2560, 30, 32),
        "bloom-7b1": _preset(4096, 30, 32),
        "bloom": _preset(14336, 70, 112),
    },
    ignored={
        **dict.fromkeys(("attention_softmax_in_fp32", "masked_softmax_fusion", "bias_dropout_fusion"), "how fast; softmax is float32 here in any case"),
        **dict.fromkeys(("skip_bias_add", "skip_bias_add_qkv", "offset_alibi"), "of the software that trained it; nothing reads them"),
        "unk_token_id": "of the tokenizer",
    },
    copies={"lm_head.weight": "transformer.word_embeddings.weight"},
)
