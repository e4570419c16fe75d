"""DeepSeek V2: latent attention without and with a latent of queries, a dense layer first, shared experts, routing by groups. V3: sigmoid routing with a
correction, latent rotary positions by YaRN with a scale of its own."""

ATTENTION = {
    "vocab_size": 61, "hidden_size": 36, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 3,
    "max_position_embeddings": 64, "kv_lora_rank": 16, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6, "v_head_dim": 7, "first_k_dense_replace": 1,
    "moe_intermediate_size": 12, "num_experts_per_tok": 2, "n_routed_experts": 6,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 100.0, "factor": 40.0, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 8,
}  # fmt: skip

CASES = {
    "deepseek-v2-lite": {
        **ATTENTION, "model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"], "q_lora_rank": None, "n_shared_experts": 2, "n_group": 1,
        "topk_group": 1, "topk_method": "greedy", "norm_topk_prob": False, "routed_scaling_factor": 1.0,
    },
    "deepseek-v2": {
        **ATTENTION, "model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"], "q_lora_rank": 18, "n_shared_experts": 1, "n_group": 3,
        "topk_group": 2, "topk_method": "group_limited_greedy", "norm_topk_prob": False, "routed_scaling_factor": 4.0,
        "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    },
    "deepseek-v3": {
        **ATTENTION, "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "q_lora_rank": 18, "n_shared_experts": 1, "n_group": 3,
        "topk_group": 2, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "rope_parameters": YARN, "_buffers": ["e_score_correction_bias"],
        "attention_bias": True,
    },
}  # fmt: skip
