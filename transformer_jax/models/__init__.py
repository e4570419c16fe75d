"""The shapes of models."""

from transformer_jax.models.base import ModelConfig
from transformer_jax.models.decoder_only import Cache, DecoderOnly, DecoderOnlyConfig
from transformer_jax.models.layout import stacked, unstacked
from transformer_jax.models.taps import residual_stream

__all__ = ["Cache", "DecoderOnly", "DecoderOnlyConfig", "ModelConfig", "residual_stream", "stacked", "unstacked"]
