"""GPT-2: an MLP of another width; classes of tokens."""

SIZES = {"model_type": "gpt2", "vocab_size": 61, "n_embd": 30, "n_layer": 2, "n_head": 5, "n_positions": 40, "n_inner": 44}

CASES = {
    "gpt2": {**SIZES, "architectures": ["GPT2LMHeadModel"], "layer_norm_epsilon": 1e-3},
}
