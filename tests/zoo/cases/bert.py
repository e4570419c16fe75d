"""BERT: types of tokens, a head dimension that is no power of two, an activation that is not the default; classes of sequences and tokens; the pooler.

The published classifier and pooler look at the first place, be it padding or not, ours at the first token: without padding on the left they are
the same.
"""

SIZES = {
    "model_type": "bert", "vocab_size": 61, "hidden_size": 30, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 5,
    "max_position_embeddings": 40, "_token_types": 2,
}  # fmt: skip
LABELS = {"id2label": {"0": "a", "1": "b", "2": "c"}}

CASES = {
    "bert": {**SIZES, "architectures": ["BertForMaskedLM"], "layer_norm_eps": 1e-3, "_hidden": True},
    "bert-model": {**SIZES, "architectures": ["BertModel"], "hidden_act": "silu", "_paddings": ["whole", "right"]},
    "bert-classes": {**SIZES, **LABELS, "architectures": ["BertForSequenceClassification"], "hidden_act": "gelu_new", "_paddings": ["whole", "right"]},
    "bert-tokens": {**SIZES, **LABELS, "architectures": ["BertForTokenClassification"], "hidden_act": "relu", "type_vocab_size": 3, "_token_types": 3},
}
