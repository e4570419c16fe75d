"""Qwen2: windows from the second layer on, and in layers that layer_types names; positions stretched by YaRN; grouped heads; tied and untied; classes."""

SIZES = {"model_type": "qwen2", "vocab_size": 53, "hidden_size": 30, "intermediate_size": 26, "max_position_embeddings": 64, "pad_token_id": 0}
HEADS = {"num_attention_heads": 3, "num_key_value_heads": 1}
WINDOWS = {"use_sliding_window": True, "sliding_window": 4}
YARN = {"rope_type": "yarn", "rope_theta": 90.0, "factor": 4.0, "original_max_position_embeddings": 16}

CASES = {
    "qwen2": {**SIZES, **HEADS, **WINDOWS, "architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 3, "max_window_layers": 1},
    "qwen2-yarn": {**SIZES, **HEADS, "architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 2, "rope_parameters": YARN, "tie_word_embeddings": True},
    "qwen2-model": {
        **SIZES, **HEADS, **WINDOWS, "architectures": ["Qwen2Model"], "num_hidden_layers": 3, "rms_norm_eps": 1e-3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "qwen2-sequences": {**SIZES, **HEADS, "architectures": ["Qwen2ForSequenceClassification"], "num_hidden_layers": 2, "num_labels": 3},
    "qwen2-tokens": {**SIZES, **HEADS, "architectures": ["Qwen2ForTokenClassification"], "num_hidden_layers": 1, "num_labels": 4},
}  # fmt: skip
