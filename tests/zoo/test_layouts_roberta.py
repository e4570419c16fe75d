"""RoBERTa as the hub has it: position ids, a pooler, and the head's copies."""

from pathlib import Path
from typing import Any

import numpy as np


def older(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return tensors | {
        "roberta.embeddings.position_ids": np.arange(24)[None],
        "roberta.pooler.dense.weight": np.ones((30, 30)),
        "roberta.pooler.dense.bias": np.ones(30),
        "lm_head.decoder.weight": tensors["roberta.embeddings.word_embeddings.weight"],
        "lm_head.decoder.bias": tensors["lm_head.bias"],
    }


def test_what_is_no_parameter_and_copies_change_nothing(tmp_path: Path, rewritten: Any, output: Any) -> None:
    np.testing.assert_array_equal(output(rewritten("roberta", tmp_path, older, position_embedding_type="absolute")), output("roberta"))


def test_a_model_without_prefix_gives_its_features(tmp_path: Path, rewritten: Any, output: Any) -> None:
    def bare(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name.removeprefix("roberta."): array for name, array in older(tensors).items() if name.startswith("roberta.")}

    folder = rewritten("roberta", tmp_path, bare, architectures=["RobertaModel"])
    np.testing.assert_array_equal(output(folder), output("roberta", method="features"))
