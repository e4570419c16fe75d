"""RoBERTa and XLM-RoBERTa: BERT's encoder, with positions that begin behind the padding token's row."""

from collections.abc import Iterator
from typing import Any

from transformer_jax.layers import MaskedLanguageModel, NoHead, SequenceClassifier, TokenClassifier
from transformer_jax.models import EncoderOnlyConfig
from transformer_jax.zoo.bert import encoder, encoder_head, encoder_settings, encoder_tensors
from transformer_jax.zoo.family import Family
from transformer_jax.zoo.settings import Settings
from transformer_jax.zoo.tensors import Place, Tensor, linear, norm


def config(s: Settings) -> EncoderOnlyConfig:
    return encoder(s, encoder_head(s, "gelu"), offset=s("pad_token_id", 1) + 1)


def settings(model: Any) -> dict[str, Any] | None:
    values = encoder_settings(model)
    return values and {**values, "pad_token_id": model.embedding.position.offset - 1}


def tensors(model: EncoderOnlyConfig) -> Iterator[Tensor]:
    yield from encoder_tensors(model, "roberta.")
    head = Place(("head",))
    if isinstance(model.head, MaskedLanguageModel):
        yield from linear("lm_head.dense", head / "transform")
        yield from norm("lm_head.layer_norm", head / "norm")
        yield Tensor("lm_head.bias", (head / "logits/bias",))
    if isinstance(model.head, SequenceClassifier):
        yield from linear("classifier.dense", head / "dense")
        yield from linear("classifier.out_proj", head)


def _preset(vocab_size: int, hidden_size: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size, "hidden_size": hidden_size, "intermediate_size": 4 * hidden_size, "num_hidden_layers": 12 if hidden_size == 768 else 24,
        "num_attention_heads": hidden_size // 64, "max_position_embeddings": 514, "layer_norm_eps": 1e-5, "type_vocab_size": 1, "pad_token_id": 1,
    }  # fmt: skip


def _family(name: str, model_type: str, classes: str, *, paper: str, unusual: str, presets: dict[str, dict[str, Any]]) -> Family:
    return Family(
        name,
        paper=paper,
        unusual=unusual,
        model_type=model_type,
        architectures={
            f"{classes}ForMaskedLM": MaskedLanguageModel,
            f"{classes}Model": NoHead,
            f"{classes}ForSequenceClassification": SequenceClassifier,
            f"{classes}ForTokenClassification": TokenClassifier,
        },
        prefix="roberta.",
        config=config,
        settings=settings,
        tensors=tensors,
        presets=presets,
        dropped={
            r"roberta\.embeddings\.position_ids": "0, 1, 2, ...",
            r"roberta\.pooler\.dense\.(weight|bias)": "for a vector of a sequence",
        },
        renamed={r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"},
        copies={"lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight", "lm_head.decoder.bias": "lm_head.bias"},
        shown={"add_pooling_layer": "roberta.pooler."},
    )


ROBERTA = _family(
    "RoBERTa",
    "roberta",
    "Roberta",
    paper="arXiv:1907.11692",
    unusual="BERT whose positions begin behind the row of the padding token, and whose classifier has a dense layer of its own",
    presets={"roberta-base": _preset(50265, 768), "roberta-large": _preset(50265, 1024)},
)
XLM_ROBERTA = _family(
    "XLM-RoBERTa",
    "xlm-roberta",
    "XLMRoberta",
    paper="arXiv:1911.02116",
    unusual="RoBERTa with a vocabulary of a hundred languages",
    presets={"xlm-roberta-base": _preset(250002, 768)},
)
