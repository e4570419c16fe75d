"""Gemma 3, the text models: five layers with a window to one without, each kind with rotary positions of its own; norms of queries and keys."""

from typing import Any

from transformer_jax.layers import LanguageModel, NoHead, NoScaling, Rope, SequenceClassifier, Stack
from transformer_jax.models import DecoderOnlyConfig
from transformer_jax.zoo import gemma2, relatives
from transformer_jax.zoo.family import Family
from transformer_jax.zoo.relatives import causal, window, windows
from transformer_jax.zoo.rope import agreeing, rope, rope_settings
from transformer_jax.zoo.settings import Settings


def config(s: Settings) -> DecoderOnlyConfig:
    s.only("attn_logit_softcapping", None)
    everywhere, local = _positions(s)
    period, norm = s("sliding_window_pattern", 6), gemma2.norm(s)
    sliding = [(n + 1) % period != 0 for n in range(s("num_hidden_layers"))]
    attentions = [
        gemma2.attention(s, mask=causal(window), position=everywhere if window is None else local, qk_norm=norm)
        for window in windows(s, sliding, s("sliding_window", 4096))
    ]
    return gemma2.decoder(s, attentions, max_length=131072, cap=None)


def _positions(s: Settings) -> tuple[Rope, Rope]:
    """Of layers without a window and of those with one. Files of transformers 4 scale the former alone; those of 5 say both in rope_parameters."""
    given = s("rope_parameters", None) or {}
    if other := set(given) - {"full_attention", "sliding_attention"}:
        raise ValueError(f"config.json: rope_parameters: expected those of full_attention and of sliding_attention, received {sorted(other)}")
    outside = {"rope_theta": s("rope_theta", None), **(s("rope_scaling", None) or {})}
    return (
        rope({"rope_theta": 1e6, **agreeing(outside, given.get("full_attention") or {})}, s),
        rope({"rope_theta": 1e4, **agreeing({"rope_theta": s("rope_local_base_freq", None)}, given.get("sliding_attention") or {})}, s),
    )


def settings(model: Any) -> dict[str, Any] | None:
    match relatives.first_layer(model):
        case attention, mlp, _:
            everywhere, local = _position(model.stack, False, 1e6), _position(model.stack, True, 1e4)
            if local.scaling != NoScaling():
                return None
            fields = gemma2.common_settings(model, attention, mlp)
            return {**fields, **_pattern(fields["layer_types"]), **rope_settings(everywhere), "rope_local_base_freq": local.theta}
    return None


def _position(stack: Stack, sliding: bool, theta: float) -> Rope:
    """Of the first layer of a kind; one with `theta` where there is none."""
    found = (attention.position for attention in relatives.attentions(stack) if (window(attention.mask) is not None) is sliding)
    return next((position for position in found if isinstance(position, Rope)), Rope(theta))


def _pattern(kinds: list[str]) -> dict[str, Any]:
    """sliding_window_pattern, which says what layer_types says to versions that do not know it; nothing where it cannot."""
    period = kinds.index("full_attention") + 1 if "full_attention" in kinds else max(6, len(kinds) + 1)
    same = [kind == "full_attention" for kind in kinds] == [(n + 1) % period == 0 for n in range(len(kinds))]
    return {"sliding_window_pattern": period} if same else {}


def _preset(
    hidden_size: int, intermediate_size: int, layers: int, heads: int, kv_heads: int, *, vocab_size: int = 262144, length: int = 32768,
    sliding_window: int = 512, head_dim: int = 256, scalar: int = 256,
) -> dict[str, Any]:  # fmt: skip
    return {
        "vocab_size": vocab_size, "hidden_size": hidden_size, "intermediate_size": intermediate_size, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim, "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": length, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
        "rope_scaling": None if length == 32768 else {"rope_type": "linear", "factor": 8.0}, "sliding_window": sliding_window, "sliding_window_pattern": 6,
        "query_pre_attn_scalar": scalar,
    }  # fmt: skip


def _text_preset(hidden_size: int, intermediate_size: int, layers: int, heads: int, kv_heads: int, **fields: Any) -> dict[str, Any]:
    """The text model of one that also sees, whose table has rows for its own tokens."""
    return _preset(hidden_size, intermediate_size, layers, heads, kv_heads, vocab_size=262208, length=131072, sliding_window=1024, **fields)


FAMILY = Family(
    "Gemma 3",
    paper="arXiv:2503.19786",
    unusual="five layers with a window to one without, whose rotary positions are slower and alone are scaled",
    model_type="gemma3_text",
    architectures={"Gemma3ForCausalLM": LanguageModel, "Gemma3TextModel": NoHead, "Gemma3TextForSequenceClassification": SequenceClassifier},
    prefix="model.",
    config=config,
    settings=settings,
    tensors=gemma2.tensors,
    presets={
        "gemma-3-270m": _preset(640, 2048, 18, 4, 1),
        "gemma-3-1b-pt": _preset(1152, 6912, 26, 4, 1),
        "gemma-3-4b-text": _text_preset(2560, 10240, 34, 8, 4),
        "gemma-3-12b-text": _text_preset(3840, 15360, 48, 16, 8),
        "gemma-3-27b-text": _text_preset(5376, 21504, 62, 32, 16, head_dim=128, scalar=168),
    },
    ignored={
        "_sliding_window_pattern": "layer_types says it again",
        "cache_implementation": "of generating text, not of the model",
    },
    copies={"lm_head.weight": "model.embed_tokens.weight"},
)
