"""BART: an encoder and a decoder with learned positions, whose first two rows nothing reads, a norm of the embeddings, layer norm after each sublayer.

Its classifier of sequences is given the same tokens on both sides, and looks at the decoder's last valid one, the end of the sequence.
"""

from collections.abc import Iterator
from typing import Any

from transformer_jax.layers import (
    Attention,
    Causal,
    CrossAttention,
    Dense,
    Embedding,
    Group,
    Head,
    LanguageModel,
    LastToken,
    LayerNorm,
    Learned,
    NoHead,
    NoMask,
    NoNorm,
    NormalInit,
    Position,
    Residual,
    SequenceClassifier,
    Stack,
)
from transformer_jax.models import EncoderDecoderConfig
from transformer_jax.zoo.activations import THEIRS, activation
from transformer_jax.zoo.family import Family
from transformer_jax.zoo.heads import num_labels
from transformer_jax.zoo.settings import Settings
from transformer_jax.zoo.stacks import layers, places
from transformer_jax.zoo.tensors import Place, Tensor, linear, norm, table


def config(s: Settings) -> EncoderDecoderConfig:
    s.only("normalize_embedding", True)
    s.only("static_position_embeddings", False)
    s.only("extra_pos_embeddings", 2)
    return encoder_decoder(s, Learned(offset=2), norm=LayerNorm())


def encoder_decoder(s: Settings, position: Position, *, norm: LayerNorm | NoNorm = NoNorm(), share_embedding: bool = True) -> EncoderDecoderConfig:
    """A model of BART's shape: what families differ in is how tokens are embedded."""
    s.only("tie_word_embeddings", True)
    for name in ("is_decoder", "normalize_before", "add_final_layer_norm", "add_bias_logits"):
        s.only(name, False)
    for name, again in (("d_model", "hidden_size"), ("encoder_layers", "num_hidden_layers"), ("encoder_attention_heads", "num_attention_heads")):
        s.only(again, s(name))
    rate = s("dropout", 0.1)
    embedding = Embedding(position, norm=norm, dropout=rate, scale=s("scale_embedding", False))

    def heads(side: str) -> dict[str, Any]:
        return {"num_heads": s(f"{side}_attention_heads"), "qkv_bias": True, "out_bias": True, "dropout": s("attention_dropout", 0.0)}

    def stack(side: str, *mixers: Any) -> Stack:
        mlp = Dense(s(f"{side}_ffn_dim"), activation=activation(s("activation_function", "gelu")), bias=True, dropout=s("activation_dropout", 0.0))
        return Stack((Group(s(f"{side}_layers"), tuple(Residual(layer, after=LayerNorm(), dropout=rate) for layer in (*mixers, mlp))),))

    return EncoderDecoderConfig(
        s("vocab_size"), d_model=s("d_model"), max_length=s("max_position_embeddings", 1024),
        encoder=stack("encoder", Attention(**heads("encoder"), mask=NoMask())),
        decoder=stack("decoder", Attention(**heads("decoder"), mask=Causal()), CrossAttention(**heads("decoder"))),
        source_embedding=embedding, target_embedding=embedding, share_embedding=share_embedding, head=_head(s), initialization=NormalInit(s("init_std", 0.02)),
    )  # fmt: skip


def _head(s: Settings) -> Head:
    rate = s("classifier_dropout", 0.0)
    if s.head is SequenceClassifier:
        return SequenceClassifier(num_labels(s, 3), pool=LastToken(), activation="tanh", dropout=rate)
    return NoHead() if s.head is NoHead else LanguageModel(bias=True)


def settings(model: Any) -> dict[str, Any] | None:
    return encoder_decoder_settings(model) if isinstance(getattr(getattr(model, "source_embedding", None), "position", None), Learned) else None


def encoder_decoder_settings(model: Any) -> dict[str, Any] | None:
    """The reverse of `encoder_decoder`, but for how tokens are embedded."""
    if not isinstance(model, EncoderDecoderConfig):
        return None
    match layers(model.encoder)[:1], layers(model.decoder, 3)[:1]:
        case (
            [(Residual(Attention() as attention, dropout=rate), Residual(Dense() as mlp))],
            [(Residual(Attention() as decoder_attention), _, Residual(Dense() as decoder_mlp))],
        ):
            return {
                "vocab_size": model.vocab_size,
                "d_model": model.d_model,
                "max_position_embeddings": model.max_length,
                "encoder_layers": len(layers(model.encoder)),
                "encoder_attention_heads": attention.num_heads,
                "encoder_ffn_dim": mlp.d_ff,
                "decoder_layers": len(layers(model.decoder, 3)),
                "decoder_attention_heads": decoder_attention.num_heads,
                "decoder_ffn_dim": decoder_mlp.d_ff,
                "activation_function": THEIRS[mlp.activation],
                "scale_embedding": model.source_embedding.scale,
                "dropout": rate,
                "attention_dropout": attention.dropout,
                "activation_dropout": mlp.dropout,
                "classifier_dropout": getattr(model.head, "dropout", 0.0),
                "is_encoder_decoder": True,
            }
    return None


def tensors(model: EncoderDecoderConfig) -> Iterator[Tensor]:
    if model.share_embedding:
        yield table("model.shared.weight", Place(("source_embedding", "embedding")))
    for side, stack, ours, mixers in (
        ("encoder", model.encoder, "source_embedding", ("self_attn",)),
        ("decoder", model.decoder, "target_embedding", ("self_attn", "encoder_attn")),
    ):
        if not model.share_embedding:
            yield table(f"model.{side}.embed_tokens.weight", Place((ours, "embedding")))
        yield table(f"model.{side}.embed_positions.weight", Place((ours, "position", "embedding")))
        yield from norm(f"model.{side}.layernorm_embedding", Place((ours, "norm")))
        for n, (*attentions, mlp) in enumerate(places(stack, len(mixers) + 1, side)):
            at = f"model.{side}.layers.{n}"
            for mixer, attention in zip(mixers, attentions):
                for theirs, mine in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
                    yield from linear(f"{at}.{mixer}.{theirs}", attention / "layer" / mine)
                yield from linear(f"{at}.{mixer}.out_proj", attention / "layer/out", inputs=2)
                yield from norm(f"{at}.{mixer}_layer_norm", attention / "after")
            yield from linear(f"{at}.fc1", mlp / "layer/up")
            yield from linear(f"{at}.fc2", mlp / "layer/down")
            yield from norm(f"{at}.final_layer_norm", mlp / "after")
    head = Place(("head",))
    if isinstance(model.head, LanguageModel):
        yield Tensor("final_logits_bias", (head / "bias",), ones=1)
    elif isinstance(model.head, SequenceClassifier):
        yield from linear("classification_head.dense", head / "dense")
        yield from linear("classification_head.out_proj", head)


COPIES = {"lm_head.weight": "model.shared.weight", **{f"model.{side}.embed_tokens.weight": "model.shared.weight" for side in ("encoder", "decoder")}}
IGNORED = {
    **dict.fromkeys(("encoder_layerdrop", "decoder_layerdrop"), "drops whole layers in training"),
    **dict.fromkeys(("classif_dropout", "force_bos_token_to_be_generated"), "older names of other fields"),
}


def both_sides(num_layers: int, num_heads: int, d_ff: int) -> dict[str, int]:
    """Fields of an encoder and a decoder of the same sizes."""
    sizes = {"layers": num_layers, "attention_heads": num_heads, "ffn_dim": d_ff}
    return {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()}


def _preset(d_model: int, num_layers: int, num_heads: int, vocab_size: int = 50265, dropped: float = 0.1) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size, "d_model": d_model, "max_position_embeddings": 1024, "activation_function": "gelu",
        **both_sides(num_layers, num_heads, 4 * d_model), **dict.fromkeys(("attention_dropout", "activation_dropout", "classifier_dropout"), dropped),
    }  # fmt: skip


FAMILY = Family(
    "BART",
    paper="Lewis et al., arXiv:1910.13461",
    unusual="two rows of positions before the first; a norm of the embeddings; a bias for the logits of a tied head",
    model_type="bart",
    architectures={"BartForConditionalGeneration": LanguageModel, "BartModel": NoHead, "BartForSequenceClassification": SequenceClassifier},
    prefix="model.",
    config=config,
    settings=settings,
    tensors=tensors,
    presets={
        "bart-base": _preset(768, 6, 12),
        "bart-large": _preset(1024, 12, 16),
        "bart-large-cnn": _preset(1024, 12, 16, vocab_size=50264, dropped=0.0),
    },
    ignored=IGNORED,
    dropped={r"model\.(encoder|decoder)\.version": "of the software that wrote the file"},
    copies=COPIES,
)
