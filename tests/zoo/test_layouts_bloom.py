"""BLOOM as the hub has it: other names of fields, and none of the class's before those of tensors."""

from pathlib import Path
from typing import Any

import numpy as np

OLDER = {
    "hidden_size": None, "n_embed": 36, "n_head": None, "num_attention_heads": 6, "n_inner": None, "offset_alibi": 100, "seq_length": 2048,
    "skip_bias_add": True, "skip_bias_add_qkv": False, "attention_softmax_in_fp32": True, "masked_softmax_fusion": True, "bias_dropout_fusion": True,
    "pretraining_tp": 4, "slow_but_exact": False, "unk_token_id": 0, "dtype": None, "torch_dtype": "bfloat16",
}  # fmt: skip


def older(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("transformer."): array for name, array in tensors.items()}


def test_the_older_layout_says_the_same_model(tmp_path: Path, rewritten: Any, output: Any) -> None:
    np.testing.assert_array_equal(output(rewritten("bloom", tmp_path, older, **OLDER)), output("bloom"))
