"""Falcon as the hub has it: the fields of transformers 4, and the head's copy of the embeddings; and what it cannot express."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

OLDER = {"rope_parameters": None, "rope_theta": 700.0, "rope_scaling": {"type": "linear", "factor": 3.0}, "dtype": None, "torch_dtype": "bfloat16"}


def with_copy(tensors: dict[str, Any]) -> dict[str, Any]:
    return tensors | {
        "lm_head.weight": tensors["transformer.word_embeddings.weight"],
        "transformer.h.0.self_attention.rotary_emb.inv_freq": np.ones(3),
    }


def test_the_older_layout_says_the_same_model(tmp_path: Path, rewritten: Any, output: Any) -> None:
    np.testing.assert_array_equal(output(rewritten("falcon-groups", tmp_path, with_copy, **OLDER)), output("falcon-groups"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alibi": True}, r"alibi: expected False for Falcon, received True"),
        ({"num_ln_in_parallel_attn": 2}, r"num_ln_in_parallel_attn: expected None or 1 for Falcon, received 2"),
    ],
)
def test_what_it_cannot_express_is_refused(tmp_path: Path, rewritten: Any, output: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(NotImplementedError, match=message):
        output(rewritten("falcon", tmp_path, **fields))
