"""GPT-NeoX: heads of 20 features of which 10 turn, without biases of attention; one sublayer after the other, tied, with slowed positions; classes."""

SIZES = {
    "model_type": "gpt_neox", "vocab_size": 61, "hidden_size": 40, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64, "eos_token_id": 1,
}  # fmt: skip
LABELS = {"id2label": {"0": "a", "1": "b", "2": "c"}, "pad_token_id": 0, "hidden_size": 48}
HALF = {"rope_type": "default", "rope_theta": 90.0, "partial_rotary_factor": 0.5}
SLOWED = {"rope_type": "linear", "factor": 3.0, "rope_theta": 700.0, "partial_rotary_factor": 1.0}

CASES = {
    "gpt-neox": {**SIZES, "architectures": ["GPTNeoXForCausalLM"], "attention_bias": False, "rope_parameters": HALF, "hidden_act": "gelu_fast"},
    "gpt-neox-serial": {
        **SIZES, "architectures": ["GPTNeoXForCausalLM"], "use_parallel_residual": False, "tie_word_embeddings": True, "layer_norm_eps": 1e-3,
        "rope_parameters": SLOWED,
    },
    "gpt-neox-classes": {**SIZES, **LABELS, "architectures": ["GPTNeoXForSequenceClassification"]},
    "gpt-neox-tokens": {**SIZES, **LABELS, "architectures": ["GPTNeoXForTokenClassification"]},
}  # fmt: skip
