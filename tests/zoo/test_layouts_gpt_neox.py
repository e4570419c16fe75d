"""GPT-NeoX as transformers 4 wrote it: rotary positions in fields of their own, masks and frequencies among the tensors; and the head's later name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

OLDER = {"rope_parameters": None, "rotary_pct": 0.5, "rotary_emb_base": 90, "dtype": None, "torch_dtype": "float16", "attention_probs_dropout_prob": 0}


def older(tensors: dict[str, Any]) -> dict[str, Any]:
    at = "gpt_neox.layers.0.attention."
    return tensors | {f"{at}bias": np.ones((1, 1, 64, 64), bool), f"{at}masked_bias": np.float32(-1e9), f"{at}rotary_emb.inv_freq": np.ones(5)}


def test_the_older_layout_says_the_same_model(tmp_path: Path, rewritten: Any, output: Any) -> None:
    np.testing.assert_array_equal(output(rewritten("gpt-neox", tmp_path, older, **OLDER)), output("gpt-neox"))


def test_older_and_newer_fields_of_slowed_positions_say_the_same_model(tmp_path: Path, rewritten: Any, output: Any) -> None:
    fields = {"rope_parameters": None, "rotary_pct": 1.0, "rotary_emb_base": 700, "rope_scaling": {"type": "linear", "factor": 3.0}}
    np.testing.assert_array_equal(output(rewritten("gpt-neox-serial", tmp_path, **fields)), output("gpt-neox-serial"))


def test_the_head_may_have_its_later_name(tmp_path: Path, rewritten: Any, output: Any) -> None:
    folder = rewritten("gpt-neox", tmp_path, lambda tensors: {name.replace("embed_out", "lm_head"): array for name, array in tensors.items()})
    np.testing.assert_array_equal(output(folder), output("gpt-neox"))


def test_an_odd_number_of_turning_features_is_refused(tmp_path: Path, rewritten: Any, output: Any) -> None:
    with pytest.raises(NotImplementedError, match=r"rotary_pct: expected a share that turns an even number of features, received 0\.25 \(5\)"):
        output(rewritten("gpt-neox", tmp_path, rope_parameters=None, rotary_pct=0.25))
