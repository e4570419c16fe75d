"""Qwen3's mixture: QK-norm, every second layer with experts, weights as the router gives them; and one with weights that sum to 1 and a dense layer."""

SIZES = {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 61, "hidden_size": 32, "intermediate_size": 40,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 20, "max_position_embeddings": 64, "moe_intermediate_size": 12, "num_experts": 5,
    "num_experts_per_tok": 2,
}  # fmt: skip

CASES = {
    "qwen3-moe": {**SIZES, "num_hidden_layers": 4, "decoder_sparse_step": 2, "norm_topk_prob": False, "attention_bias": True},
    "qwen3-moe-window": {**SIZES, "num_hidden_layers": 3, "mlp_only_layers": [1], "norm_topk_prob": True, "use_sliding_window": True, "sliding_window": 5},
}
