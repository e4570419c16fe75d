"""Gemma 3: eight layers of which the sixth has no window, two bases of rotary positions, one scaled; a cap; biases; tied and untied; classes."""

SIZES = {"model_type": "gemma3_text", "vocab_size": 53, "hidden_size": 12, "intermediate_size": 14, "max_position_embeddings": 64, "sliding_window": 4}
HEADS = {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10, "query_pre_attn_scalar": 7, "_scales_around_0": True}
POSITIONS = {
    "full_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
}  # fmt: skip

CASES = {
    "gemma3": {**SIZES, **HEADS, "architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 8, "rope_parameters": POSITIONS},
    "gemma3-untied": {
        **SIZES, **HEADS, "architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 3, "tie_word_embeddings": False, "attention_bias": True,
        "layer_types": ["full_attention", "full_attention", "sliding_attention"], "final_logit_softcapping": 3.0,
    },
    "gemma3-model": {**SIZES, **HEADS, "architectures": ["Gemma3TextModel"], "num_hidden_layers": 7, "rms_norm_eps": 1e-3, "rope_parameters": POSITIONS},
    "gemma3-sequences": {**SIZES, **HEADS, "architectures": ["Gemma3TextForSequenceClassification"], "num_hidden_layers": 2, "num_labels": 3},
}  # fmt: skip
