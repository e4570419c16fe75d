"""The transformer of 2017, against torch.nn.Transformer."""

CASES = {
    "transformer": {
        "model_type": "transformer", "architectures": ["Transformer"], "vocab_size": 61, "d_model": 24, "d_ff": 22, "h": 3, "N": 2, "max_length": 16,
    },
}  # fmt: skip
