"""Qwen3: norms of queries and keys; biases; windows from the second layer on; grouped heads of their own size; tied and untied; classes."""

SIZES = {"model_type": "qwen3", "vocab_size": 53, "hidden_size": 22, "intermediate_size": 26, "max_position_embeddings": 64, "pad_token_id": 0}
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10, "rope_parameters": {"rope_type": "default", "rope_theta": 70.0}}
WINDOWS = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}

CASES = {
    "qwen3": {**SIZES, **HEADS, "architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 2, "attention_bias": True, "rms_norm_eps": 1e-3},
    "qwen3-tied": {**SIZES, **HEADS, **WINDOWS, "architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 3, "tie_word_embeddings": True},
    "qwen3-model": {**SIZES, **HEADS, "architectures": ["Qwen3Model"], "num_hidden_layers": 1},
    "qwen3-sequences": {**SIZES, **HEADS, "architectures": ["Qwen3ForSequenceClassification"], "num_hidden_layers": 2, "num_labels": 3},
    "qwen3-tokens": {**SIZES, **HEADS, **WINDOWS, "architectures": ["Qwen3ForTokenClassification"], "num_hidden_layers": 2, "num_labels": 4},
}
