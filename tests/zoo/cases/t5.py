"""T5: stacks of different depth, heads whose width is no share of the model's, distances beyond the last bucket; a tied head, scaled and not; an untied one and
gated MLPs; the model without a head, and its encoder alone. Queries are small, as T5's are, for scores have no scale."""

SIZES = {
    "model_type": "t5", "vocab_size": 61, "d_model": 24, "d_kv": 10, "d_ff": 22, "num_heads": 3, "num_layers": 2, "num_decoder_layers": 3,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 10, "_small": ("Attention.q.",),
}  # fmt: skip
GATED = {**SIZES, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
LM, MODEL, ENCODER = ({"architectures": [f"T5{name}"]} for name in ("ForConditionalGeneration", "Model", "EncoderModel"))

CASES = {
    "t5": {**SIZES, **LM, "layer_norm_epsilon": 1e-3},
    "t5-v1_1": {**GATED, **LM, "_untied": ("lm_head",)},
    "t5-v1_1-tied": {**GATED, **LM},
    "t5-model": {**SIZES, **MODEL},
    "t5-encoder": {**GATED, **ENCODER, "_positions": "relative"},
}
