"""BART: stacks of different depth, width and heads; scaled embeddings; the model without a head; classes of sequences, of the same tokens on both sides."""

SIZES = {
    "model_type": "bart", "vocab_size": 61, "d_model": 24, "max_position_embeddings": 16, "encoder_layers": 2, "encoder_attention_heads": 3,
    "encoder_ffn_dim": 22, "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 26, "_positions": "places",
}  # fmt: skip
LM, MODEL, CLASSES = ({"architectures": [f"Bart{name}"]} for name in ("ForConditionalGeneration", "Model", "ForSequenceClassification"))

CASES = {
    "bart": {**SIZES, **LM, "_buffers": ("final_logits_bias",)},
    "bart-scaled": {**SIZES, **LM, "_buffers": ("final_logits_bias",), "scale_embedding": True, "activation_function": "relu"},
    "bart-model": {**SIZES, **MODEL, "decoder_layers": 3, "encoder_layers": 1},
    "bart-classes": {**SIZES, **CLASSES, "num_labels": 5, "_same_tokens": True},
}
