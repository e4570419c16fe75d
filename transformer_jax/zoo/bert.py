"""BERT: an encoder with learned positions, layer norm after each sublayer, and types of tokens."""

from collections.abc import Iterator
from typing import Any

from transformer_jax.layers import (
    Attention,
    Dense,
    Embedding,
    Group,
    Head,
    LayerNorm,
    Learned,
    MaskedLanguageModel,
    NoHead,
    NoMask,
    NormalInit,
    Residual,
    SequenceClassifier,
    Stack,
    TokenClassifier,
)
from transformer_jax.models import EncoderOnlyConfig
from transformer_jax.zoo.activations import THEIRS, activation
from transformer_jax.zoo.family import Family
from transformer_jax.zoo.heads import num_labels
from transformer_jax.zoo.settings import Settings
from transformer_jax.zoo.stacks import places
from transformer_jax.zoo.tensors import Place, Tensor, linear, norm, table


def encoder(s: Settings, head: Head, *, offset: int = 0) -> EncoderOnlyConfig:
    """BERT's encoder under a head, with so many rows of its table of positions before the first."""
    s.only("position_embedding_type", "absolute")
    s.only("is_decoder", False)
    scale, drop = LayerNorm(s("layer_norm_eps", 1e-12)), s("hidden_dropout_prob", 0.1)
    attention = Attention(s("num_attention_heads"), mask=NoMask(), qkv_bias=True, out_bias=True, dropout=s("attention_probs_dropout_prob", 0.1))
    mlp = Dense(s("intermediate_size"), activation=activation(s("hidden_act", "gelu")), bias=True)
    block = Residual(attention, after=scale, dropout=drop), Residual(mlp, after=scale, dropout=drop)
    return EncoderOnlyConfig(
        s("vocab_size"), d_model=s("hidden_size"), max_length=s("max_position_embeddings", 512) - offset, stack=Stack((Group(s("num_hidden_layers"), block),)),
        embedding=Embedding(Learned(offset=offset), norm=scale, dropout=drop, token_types=s("type_vocab_size", 2)), head=head,
        pooler=s("add_pooling_layer", True) and isinstance(head, NoHead),
        initialization=NormalInit(s("initializer_range", 0.02)),
    )  # fmt: skip


def encoder_head(s: Settings, hidden_act: str) -> Head:
    """BERT's heads; `hidden_act` is that of the head behind masks."""
    drop = s("classifier_dropout", None)
    drop = s("hidden_dropout_prob", 0.1) if drop is None else drop
    if s.head is SequenceClassifier:
        return SequenceClassifier(num_labels(s), dropout=drop)
    if s.head is TokenClassifier:
        return TokenClassifier(num_labels(s), dropout=drop)
    if s.head is NoHead:
        return NoHead()
    s.only("tie_word_embeddings", True)  # which of two biases an untied head adds depends on the version that reads it
    return MaskedLanguageModel(activation(hidden_act), norm=LayerNorm(s("layer_norm_eps", 1e-12)))


def config(s: Settings) -> EncoderOnlyConfig:
    return encoder(s, encoder_head(s, s("hidden_act", "gelu")))


def encoder_settings(model: Any) -> dict[str, Any] | None:
    """The fields that BERT's encoder and heads have; None for another."""
    match model:
        case EncoderOnlyConfig(
            embedding=Embedding(Learned() as position),
            stack=Stack((Group(layers, (Residual(Attention() as attention, after=LayerNorm(eps), dropout=drop), Residual(Dense() as mlp))),)),
        ):  # fmt: skip
            return {
                "vocab_size": model.vocab_size,
                "hidden_size": model.d_model,
                "intermediate_size": mlp.d_ff,
                "num_hidden_layers": layers,
                "num_attention_heads": attention.num_heads,
                "hidden_act": THEIRS[mlp.activation],
                "max_position_embeddings": model.max_length + position.offset,
                "type_vocab_size": model.embedding.token_types,
                "layer_norm_eps": eps,
                "hidden_dropout_prob": drop,
                "attention_probs_dropout_prob": attention.dropout,
                "classifier_dropout": getattr(model.head, "dropout", None),
                "add_pooling_layer": model.pooler,
            }
    return None


def encoder_tensors(model: EncoderOnlyConfig, prefix: str) -> Iterator[Tensor]:
    """The encoder's and the pooler's, and the logits' of each token's class."""
    embedding = Place(("embedding",))
    yield table(f"{prefix}embeddings.word_embeddings.weight", embedding / "embedding")
    yield table(f"{prefix}embeddings.position_embeddings.weight", embedding / "position/embedding")
    yield table(f"{prefix}embeddings.token_type_embeddings.weight", embedding / "token_types")
    yield from norm(f"{prefix}embeddings.LayerNorm", embedding / "norm")
    for n, (attention, mlp) in enumerate(places(model.stack)):
        at = f"{prefix}encoder.layer.{n}"
        for part in ("query", "key", "value"):
            yield from linear(f"{at}.attention.self.{part}", attention / "layer" / part)
        yield from linear(f"{at}.attention.output.dense", attention / "layer/out", inputs=2)
        yield from norm(f"{at}.attention.output.LayerNorm", attention / "after")
        yield from linear(f"{at}.intermediate.dense", mlp / "layer/up")
        yield from linear(f"{at}.output.dense", mlp / "layer/down")
        yield from norm(f"{at}.output.LayerNorm", mlp / "after")
    if model.pooler:
        yield from linear(f"{prefix}pooler.dense", Place(("pooler",)))
    if isinstance(model.head, TokenClassifier):
        yield from linear("classifier", Place(("head",)))


def tensors(model: EncoderOnlyConfig) -> Iterator[Tensor]:
    yield from encoder_tensors(model, "bert.")
    head = Place(("head",))
    if isinstance(model.head, MaskedLanguageModel):
        yield from linear("cls.predictions.transform.dense", head / "transform")
        yield from norm("cls.predictions.transform.LayerNorm", head / "norm")
        yield Tensor("cls.predictions.bias", (head / "logits/bias",))
    if isinstance(model.head, SequenceClassifier):
        yield from linear("bert.pooler.dense", head / "dense")
        yield from linear("classifier", head)


def _preset(hidden_size: int, layers: int, vocab_size: int = 30522) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size, "hidden_size": hidden_size, "intermediate_size": 4 * hidden_size, "num_hidden_layers": layers,
        "num_attention_heads": 12 if hidden_size == 384 else hidden_size // 64, "max_position_embeddings": 512,
    }  # fmt: skip


FAMILY = Family(
    "BERT",
    paper="arXiv:1810.04805",
    unusual="layer norm after each sublayer; types of tokens; a sequence's class from its first token",
    model_type="bert",
    architectures={
        "BertForMaskedLM": MaskedLanguageModel,
        "BertForPreTraining": MaskedLanguageModel,
        "BertModel": NoHead,
        "BertForSequenceClassification": SequenceClassifier,
        "BertForTokenClassification": TokenClassifier,
    },
    prefix="bert.",
    config=config,
    settings=encoder_settings,
    tensors=tensors,
    presets={
        "bert-base": _preset(768, 12),
        "bert-large": _preset(1024, 24),
        "bert-base-cased": _preset(768, 12, 28996),
        "bert-large-cased": _preset(1024, 24, 28996),
        "bert-base-multilingual-cased": _preset(768, 12, 119547),
        "all-minilm-l6-v2": {**_preset(384, 6), "architectures": ["BertModel"]},
    },
    ignored={
        **dict.fromkeys(("pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type"), "no model reads it"),
        "directionality": "it is bidi in all files",
    },
    dropped={
        r"bert\.embeddings\.position_ids": "0, 1, 2, ...",
        r"bert\.pooler\.dense\.(weight|bias)": "for a vector or the class of a sequence",
        r"cls\.seq_relationship\.(weight|bias)": "whether a sentence follows another, asked only in pretraining",
    },
    renamed={r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"},
    copies={"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.bias": "cls.predictions.bias"},
    shown={"add_pooling_layer": "bert.pooler."},
)
