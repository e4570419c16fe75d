"""BLOOM: a number of heads that is no power of two, whose slopes are interleaved; tied and untied; classes of sequences and tokens.

The published class counts positions itself, by the mask of padding.
"""

SIZES = {"model_type": "bloom", "vocab_size": 61, "hidden_size": 36, "n_layer": 2, "n_head": 6, "_positions": "own"}
LABELS = {"id2label": {"0": "a", "1": "b", "2": "c"}, "pad_token_id": 0, "n_layer": 1}

CASES = {
    "bloom": {**SIZES, "architectures": ["BloomForCausalLM"], "layer_norm_epsilon": 1e-3},
    "bloom-untied": {**SIZES, "architectures": ["BloomForCausalLM"], "tie_word_embeddings": False, "hidden_size": 32, "n_head": 4},
    "bloom-classes": {**SIZES, **LABELS, "architectures": ["BloomForSequenceClassification"]},
    "bloom-tokens": {**SIZES, **LABELS, "architectures": ["BloomForTokenClassification"]},
}
