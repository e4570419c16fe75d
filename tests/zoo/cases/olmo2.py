"""OLMo 2: queries and keys normed over heads of which there are fewer of keys; biases; scaled positions; tied and untied; classes of sequences."""

SIZES = {"model_type": "olmo2", "vocab_size": 53, "hidden_size": 24, "intermediate_size": 22, "max_position_embeddings": 64, "pad_token_id": 0}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}

CASES = {
    "olmo2": {**SIZES, **HEADS, "architectures": ["Olmo2ForCausalLM"], "num_hidden_layers": 2, "rms_norm_eps": 1e-3},
    "olmo2-tied": {**SIZES, **HEADS, "architectures": ["Olmo2ForCausalLM"], "num_hidden_layers": 2, "tie_word_embeddings": True, "attention_bias": True},
    "olmo2-model": {
        **SIZES, **HEADS, "architectures": ["Olmo2Model"], "num_hidden_layers": 2, "rope_parameters": {"rope_type": "linear", "rope_theta": 9e2, "factor": 2.0},
    },
    "olmo2-sequences": {**SIZES, **HEADS, "architectures": ["Olmo2ForSequenceClassification"], "num_hidden_layers": 1, "num_labels": 3},
}  # fmt: skip
