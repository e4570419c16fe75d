"""Marian, the OPUS-MT translators: BART's shape with sines and cosines for positions, all sines first, and embeddings that are scaled and not normed."""

from typing import Any

from transformer_jax.layers import LanguageModel, Sinusoidal
from transformer_jax.models import EncoderDecoderConfig
from transformer_jax.zoo.bart import COPIES, IGNORED, both_sides, encoder_decoder, encoder_decoder_settings, tensors
from transformer_jax.zoo.family import Family
from transformer_jax.zoo.settings import Settings


def config(s: Settings) -> EncoderDecoderConfig:
    s.only("normalize_embedding", False)
    s.only("static_position_embeddings", True)
    s.only("decoder_vocab_size", s("vocab_size"), None)
    return encoder_decoder(s, Sinusoidal(interleaved=False), share_embedding=s("share_encoder_decoder_embeddings", True))


def settings(model: Any) -> dict[str, Any] | None:
    fields = encoder_decoder_settings(model)
    if fields is None or not isinstance(model.source_embedding.position, Sinusoidal):
        return None
    padding = model.vocab_size - 1  # where all of them have it; beyond the table it would be refused
    tokens = {"pad_token_id": padding, "decoder_start_token_id": padding, "eos_token_id": 0, "forced_eos_token_id": 0}
    return {**fields, "share_encoder_decoder_embeddings": model.share_embedding, "decoder_vocab_size": model.vocab_size, **tokens}


def _preset(vocab_size: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size, "d_model": 512, "max_position_embeddings": 512, "activation_function": "swish", "scale_embedding": True,
        **both_sides(6, 8, 2048),
    }  # fmt: skip


FAMILY = Family(
    "Marian",
    paper="Junczys-Dowmunt et al., arXiv:1804.00344; Tiedemann and Thottingal 2020, OPUS-MT",
    unusual="sines before cosines; no norm but those after sublayers; tables of tokens shared or one for each side",
    model_type="marian",
    architectures={"MarianMTModel": LanguageModel},
    prefix="model.",
    config=config,
    settings=settings,
    tensors=tensors,
    presets={"opus-mt-en-de": _preset(58101), "opus-mt-en-fr": _preset(59514)},
    ignored={**IGNORED, "extra_pos_embeddings": "rows of a table of learned positions, which it has not"},
    dropped={r"model\.(encoder|decoder)\.embed_positions\.weight": "sines and cosines"},
    copies=COPIES,
)
