"""Llama: grouped heads, a head dimension that is no share of the width, biases, slowed rotary positions; tied and untied; classes of sequences and tokens."""

SIZES = {"model_type": "llama", "vocab_size": 61, "hidden_size": 36, "intermediate_size": 40, "num_hidden_layers": 2, "max_position_embeddings": 64}
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 50.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}

CASES = {
    "llama": {**SIZES, **HEADS, "architectures": ["LlamaForCausalLM"], "head_dim": 20, "attention_bias": True, "rope_parameters": LLAMA3},
    "llama-tied": {
        **SIZES, **HEADS, "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True, "mlp_bias": True, "rms_norm_eps": 1e-3,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 700.0, "factor": 3.0}, "hidden_act": "gelu_pytorch_tanh",
    },
}  # fmt: skip
