"""Marian: stacks of different depth, width and heads; a table of tokens for both sides, and one for each."""

SIZES = {
    "model_type": "marian", "vocab_size": 61, "d_model": 24, "max_position_embeddings": 16, "encoder_layers": 2, "encoder_attention_heads": 3,
    "encoder_ffn_dim": 22, "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 26, "scale_embedding": True,
    "activation_function": "swish", "pad_token_id": 60, "decoder_start_token_id": 60, "architectures": ["MarianMTModel"], "_buffers": ("final_logits_bias",),
    "_positions": "places",
}  # fmt: skip

CASES = {
    "marian": SIZES,
    "marian-separate": {**SIZES, "share_encoder_decoder_embeddings": False, "scale_embedding": False, "activation_function": "relu"},
}
