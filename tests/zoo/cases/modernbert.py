"""ModernBERT: windows shorter than the text, biases; tied and untied; an order of layers that no period says; both ways to pool; classes of tokens.

Without padding on the left, the published classifier's first place is ours, the first token.
"""

SIZES = {
    "model_type": "modernbert", "vocab_size": 61, "hidden_size": 30, "intermediate_size": 20, "num_hidden_layers": 4, "num_attention_heads": 5,
    "max_position_embeddings": 64, "local_attention": 8, "pad_token_id": 0,
}  # fmt: skip
LABELS = {"id2label": {"0": "a", "1": "b", "2": "c"}}
PLAIN = {"rope_type": "default", "rope_theta": 90.0}
BIASES = {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True}

CASES = {
    "modernbert": {
        **SIZES, "architectures": ["ModernBertForMaskedLM"],
        "rope_parameters": {"full_attention": {**PLAIN, "rope_theta": 700.0}, "sliding_attention": PLAIN},
    },
    "modernbert-untied": {
        **SIZES, **BIASES, "architectures": ["ModernBertForMaskedLM"], "tie_word_embeddings": False, "decoder_bias": False, "norm_eps": 1e-3,
        "num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "full_attention"], "hidden_activation": "silu",
        "rope_parameters": {"full_attention": {"rope_type": "linear", "rope_theta": 700.0, "factor": 3.0}, "sliding_attention": PLAIN},
    },
    "modernbert-mean": {**SIZES, **LABELS, "architectures": ["ModernBertForSequenceClassification"], "classifier_pooling": "mean", "num_hidden_layers": 3},
    "modernbert-first": {
        **SIZES, **LABELS, "architectures": ["ModernBertForSequenceClassification"], "classifier_pooling": "cls", "classifier_activation": "relu",
        "classifier_bias": True, "num_hidden_layers": 2, "_paddings": ["whole", "right"],
    },
    "modernbert-tokens": {**SIZES, **LABELS, "architectures": ["ModernBertForTokenClassification"], "num_hidden_layers": 2},
}  # fmt: skip
