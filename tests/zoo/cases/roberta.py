"""RoBERTa and XLM-RoBERTa: positions behind a padding token that is not the usual one; classes of sequences and tokens; the pooler.

The published classifier and pooler look at the first place, be it padding or not, ours at the first token: without padding on the left they are the
same. The published class counts positions from the row behind the padding token's itself, where the tokens' numbers say what is padding.
"""

SIZES = {
    "model_type": "roberta", "vocab_size": 61, "hidden_size": 30, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 5,
    "max_position_embeddings": 24, "type_vocab_size": 1, "layer_norm_eps": 1e-4, "pad_token_id": 1, "_positions": "own",
}  # fmt: skip
LABELS = {"id2label": {"0": "a", "1": "b", "2": "c"}}

CASES = {
    "roberta": {**SIZES, "architectures": ["RobertaForMaskedLM"], "pad_token_id": 3, "hidden_act": "relu", "_hidden": True},
    "roberta-model": {**SIZES, "architectures": ["RobertaModel"], "hidden_act": "gelu_new", "_paddings": ["whole", "right"]},
    "roberta-classes": {**SIZES, **LABELS, "architectures": ["RobertaForSequenceClassification"], "_paddings": ["whole", "right"]},
    "roberta-tokens": {**SIZES, **LABELS, "architectures": ["RobertaForTokenClassification"], "type_vocab_size": 2, "_token_types": 2},
    "xlm-roberta": {**SIZES, "architectures": ["XLMRobertaForMaskedLM"], "model_type": "xlm-roberta"},
    "xlm-roberta-model": {**SIZES, "architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta", "_paddings": ["whole", "right"]},
}
