"""GPT-2 as the hub has it: without prefix, with the buffers of its masks; the head stored again, or a head of its own."""

from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


def bare(tensors: Arrays) -> Arrays:
    """As gpt2 has them."""
    masks = {f"h.{n}.attn.bias": np.tril(np.ones((1, 1, 40, 40))) for n in range(2)} | {f"h.{n}.attn.masked_bias": np.array(-1e4) for n in range(2)}
    return {name.removeprefix("transformer."): array for name, array in tensors.items()} | masks


def test_a_file_without_prefix_and_with_masks_gives_the_same(tmp_path: Path, rewritten: Any, output: Any) -> None:
    fields = {"n_ctx": 40, "n_inner": 44, "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}, "resid_pdrop": 0.0}
    np.testing.assert_array_equal(output(rewritten("gpt2", tmp_path, bare, **fields)), output("gpt2"))


def test_a_head_that_is_stored_again_is_tied(tmp_path: Path, rewritten: Any, output: Any) -> None:
    folder = rewritten("gpt2", tmp_path, lambda tensors: bare(tensors) | {"lm_head.weight": tensors["transformer.wte.weight"]})
    np.testing.assert_array_equal(output(folder), output("gpt2"))


def test_a_head_that_differs_is_its_own_whatever_the_config_says(tmp_path: Path, rewritten: Any, output: Any) -> None:
    twice = rewritten("gpt2", tmp_path, lambda tensors: tensors | {"lm_head.weight": tensors["transformer.wte.weight"] * 2}, tie_word_embeddings=True)
    np.testing.assert_allclose(output(twice), 2 * output("gpt2"), rtol=1e-6)
