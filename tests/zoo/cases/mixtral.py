"""Mixtral: two of five experts; a window shorter than the input; grouped heads of a width of their own."""

CASES = {
    "mixtral": {
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "vocab_size": 61, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 64, "num_local_experts": 5, "num_experts_per_tok": 2,
        "sliding_window": 4,
    },
}  # fmt: skip
