"""Phi-3: a window of 5; LongRoPE beyond the original length and within it, on a share of a head's features; grouped heads; tied and untied; classes."""

SIZES = {"model_type": "phi3", "vocab_size": 53, "hidden_size": 40, "intermediate_size": 22, "pad_token_id": 0}
HEADS = {"num_attention_heads": 5, "num_key_value_heads": 1}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 50.0, "short_factor": [1.1, 1.7, 2.3], "long_factor": [1.3, 4.1, 9.7], "partial_rotary_factor": 0.75,
}  # fmt: skip

CASES = {
    "phi3": {
        **SIZES, **HEADS, "architectures": ["Phi3ForCausalLM"], "num_hidden_layers": 2, "sliding_window": 5, "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
    },
    "phi3-long": {
        **SIZES, **HEADS, "architectures": ["Phi3ForCausalLM"], "num_hidden_layers": 2, "max_position_embeddings": 64, "original_max_position_embeddings": 8,
        "rope_parameters": LONGROPE, "tie_word_embeddings": True, "rms_norm_eps": 1e-3,
    },
    "phi3-short": {
        **SIZES, **HEADS, "architectures": ["Phi3Model"], "num_hidden_layers": 1, "max_position_embeddings": 16, "original_max_position_embeddings": 16,
        "rope_parameters": {**LONGROPE, "factor": 4.0},
    },
    "phi3-sequences": {**SIZES, **HEADS, "architectures": ["Phi3ForSequenceClassification"], "num_hidden_layers": 1, "num_labels": 3},
    "phi3-tokens": {**SIZES, **HEADS, "architectures": ["Phi3ForTokenClassification"], "num_hidden_layers": 1, "num_labels": 4, "sliding_window": 4},
}  # fmt: skip
