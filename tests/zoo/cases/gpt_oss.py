"""gpt-oss: sinks, windows in every second layer, YaRN without whole pairs, experts with biases and clamped gates."""

CASES = {
    "gpt-oss": {
        "model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "vocab_size": 61, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 20, "max_position_embeddings": 2048, "num_local_experts": 5, "num_experts_per_tok": 2,
        "sliding_window": 4, "_scales_around_0": False, "swiglu_limit": 0.5,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 15000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
            "original_max_position_embeddings": 64,
        },
    },
}  # fmt: skip
