"""Gemma 2: a window of 4 in layers 1 and 3, or where layer_types says; caps that bend; a scale of its own; biases; tied and untied; classes."""

SIZES = {"model_type": "gemma2", "vocab_size": 53, "hidden_size": 24, "intermediate_size": 22, "max_position_embeddings": 64, "sliding_window": 4}
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10, "query_pre_attn_scalar": 7}
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "_scales_around_0": True}

CASES = {
    "gemma2": {**SIZES, **HEADS, **CAPS, "architectures": ["Gemma2ForCausalLM"], "num_hidden_layers": 3},
    "gemma2-untied": {
        **SIZES, **HEADS, **CAPS, "architectures": ["Gemma2ForCausalLM"], "num_hidden_layers": 2, "tie_word_embeddings": False, "attention_bias": True,
        "layer_types": ["full_attention", "sliding_attention"], "attn_logit_softcapping": None, "final_logit_softcapping": None,
    },
    "gemma2-model": {**SIZES, **HEADS, **CAPS, "architectures": ["Gemma2Model"], "num_hidden_layers": 2, "rms_norm_eps": 1e-3},
    "gemma2-sequences": {**SIZES, **HEADS, **CAPS, "architectures": ["Gemma2ForSequenceClassification"], "num_hidden_layers": 1, "num_labels": 3},
    "gemma2-tokens": {**SIZES, **HEADS, **CAPS, "architectures": ["Gemma2ForTokenClassification"], "num_hidden_layers": 2, "num_labels": 4},
}  # fmt: skip
