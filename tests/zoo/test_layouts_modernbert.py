"""ModernBERT's config.json as transformers 4 wrote it."""

from pathlib import Path
from typing import Any

import numpy as np

NONE = {"layer_types": None, "rope_parameters": None}
OLDER = {
    "global_attn_every_n_layers": 3, "global_rope_theta": 700.0, "local_rope_theta": 90.0, "layer_norm_eps": 1e-5, "position_embedding_type": "absolute",
    "reference_compile": True, "repad_logits_with_grad": False, "dtype": None, "torch_dtype": "float32",
}  # fmt: skip


def test_the_older_config_says_the_same_model(tmp_path: Path, rewritten: Any, output: Any) -> None:
    np.testing.assert_array_equal(output(rewritten("modernbert", tmp_path, **NONE, **OLDER)), output("modernbert"))


def test_without_prefix_it_gives_its_features(tmp_path: Path, rewritten: Any, output: Any) -> None:
    def bare(tensors: dict[str, Any]) -> dict[str, Any]:
        return {name.removeprefix("model."): array for name, array in tensors.items() if name.startswith("model.")}

    folder = rewritten("modernbert", tmp_path, bare, architectures=["ModernBertModel"])
    np.testing.assert_array_equal(output(folder), output("modernbert", method="features"))
