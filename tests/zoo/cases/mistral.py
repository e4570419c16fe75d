"""Mistral: a window of 4, shorter than the input, and none; grouped heads of an odd size; tied and untied; classes of sequences and of tokens."""

SIZES = {"model_type": "mistral", "vocab_size": 61, "hidden_size": 30, "intermediate_size": 34, "num_hidden_layers": 2, "max_position_embeddings": 48}
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 14, "pad_token_id": 0, "rope_parameters": {"rope_type": "default", "rope_theta": 30.0}}

CASES = {
    "mistral": {**SIZES, **HEADS, "architectures": ["MistralForCausalLM"], "sliding_window": 4},
    "mistral-tied": {**SIZES, **HEADS, "architectures": ["MistralForCausalLM"], "sliding_window": None, "tie_word_embeddings": True, "rms_norm_eps": 1e-3},
    "mistral-model": {**SIZES, **HEADS, "architectures": ["MistralModel"], "sliding_window": 5},
    "mistral-sequences": {**SIZES, **HEADS, "architectures": ["MistralForSequenceClassification"], "sliding_window": 4, "num_labels": 3},
    "mistral-tokens": {**SIZES, **HEADS, "architectures": ["MistralForTokenClassification"], "sliding_window": 4, "num_labels": 5},
}
