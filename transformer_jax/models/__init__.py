"""The shapes of models."""

from transformer_jax.models.base import Model, ModelConfig
from transformer_jax.models.cache import Cache
from transformer_jax.models.decoder_only import DecoderOnly, DecoderOnlyConfig
from transformer_jax.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from transformer_jax.models.encoder_only import EncoderOnly, EncoderOnlyConfig
from transformer_jax.models.layout import stacked, unstacked
from transformer_jax.models.taps import residual_stream

__all__ = [
    "Cache", "DecoderOnly", "DecoderOnlyConfig", "EncoderDecoder", "EncoderDecoderConfig", "EncoderOnly", "EncoderOnlyConfig", "Model", "ModelConfig",
    "residual_stream", "stacked", "unstacked",
]  # fmt: skip
