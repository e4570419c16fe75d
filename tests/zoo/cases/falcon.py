"""Falcon: one key and value for all queries (7b), for each group with two norms (40b) and with one (11b), one for each query and sublayers in turn; biases,
tied and untied; classes of sequences and tokens."""

SIZES = {
    "model_type": "falcon", "vocab_size": 61, "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 6, "ffn_hidden_size": 44,
    "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
LABELS = {"id2label": {"0": "a", "1": "b", "2": "c"}, "pad_token_id": 0, "num_hidden_layers": 1}
GROUPS = {"new_decoder_architecture": True, "num_kv_heads": 2}
SLOWED = {"rope_type": "linear", "factor": 3.0, "rope_theta": 700.0}

CASES = {
    "falcon": {**SIZES, "architectures": ["FalconForCausalLM"], "ffn_hidden_size": None, "num_hidden_layers": 1},
    "falcon-groups": {**SIZES, **GROUPS, "architectures": ["FalconForCausalLM"], "bias": True, "layer_norm_epsilon": 1e-3, "rope_parameters": SLOWED},
    "falcon-one-norm": {
        **SIZES, **GROUPS, "architectures": ["FalconForCausalLM"], "num_ln_in_parallel_attn": 1, "tie_word_embeddings": False, "activation": "relu",
    },
    "falcon-serial": {**SIZES, "architectures": ["FalconForCausalLM"], "parallel_attn": False, "multi_query": False, "bias": True},
    "falcon-classes": {**SIZES, **LABELS, "architectures": ["FalconForSequenceClassification"]},
    "falcon-tokens": {**SIZES, **LABELS, **GROUPS, "architectures": ["FalconForTokenClassification"]},
}  # fmt: skip
