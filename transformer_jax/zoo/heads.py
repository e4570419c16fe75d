"""Heads of published models, by the classes whose checkpoints they are."""

from collections.abc import Iterator
from typing import Any

from transformer_jax.layers import Head, LanguageModel, LastToken, MaskedLanguageModel, NoHead, SequenceClassifier, TokenClassifier
from transformer_jax.zoo.settings import Settings
from transformer_jax.zoo.tensors import Place, Tensor, linear


def decoder_architectures(name: str, *, lm: str = "ForCausalLM") -> dict[str, type[Head]]:
    """The classes of a decoder-only family."""
    heads = {lm: LanguageModel, "Model": NoHead, "ForSequenceClassification": SequenceClassifier, "ForTokenClassification": TokenClassifier}
    return {name + suffix: head for suffix, head in heads.items()}


def decoder_head(s: Settings, *, tied: bool = False, dropout: float = 0.0, **logits: Any) -> Head:
    """Of a decoder-only model. `tied` is the family's default, `dropout` is for classes of tokens; `logits` are further fields of a language model's."""
    tied = s("tie_word_embeddings", tied)
    if s.head is SequenceClassifier:
        return SequenceClassifier(num_labels(s), pool=LastToken(), activation=None, logits_bias=False)
    if s.head is TokenClassifier:
        return TokenClassifier(num_labels(s), dropout=dropout)
    return NoHead() if s.head is NoHead else LanguageModel(tied=tied, **logits)


def decoder_head_tensors(head: Head, *, lm: str = "lm_head", tokens: str = "score") -> Iterator[Tensor]:
    """Of a decoder-only model's head; `lm` and `tokens` are what the family calls the logits of tokens and of each token's class."""
    names: dict[type[Head], str] = {LanguageModel: lm, SequenceClassifier: "score", TokenClassifier: tokens}
    if type(head) in names:
        yield from linear(names[type(head)], Place(("head",)))


def num_labels(s: Settings, default: int = 2) -> int:
    """How many classes there are."""
    names = s("id2label", None)
    return int(s("num_labels", None) or (len(names) if names else default))


def head_settings(head: Head) -> dict[str, Any]:
    """What a config.json says of a head."""
    if isinstance(head, MaskedLanguageModel):
        head = head.logits
    if isinstance(head, LanguageModel):
        return {"tie_word_embeddings": head.tied}
    labels = getattr(head, "num_labels", None)
    return {} if labels is None else {"id2label": {str(n): f"LABEL_{n}" for n in range(labels)}}
