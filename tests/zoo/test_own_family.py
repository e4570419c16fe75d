"""A family that the zoo has not: read and written by those who describe it."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from transformer_jax import from_pretrained, save_pretrained, zoo
from transformer_jax.layers import LanguageModel
from transformer_jax.zoo.tensors import Tensor


def tensors(config: Any) -> Iterator[Tensor]:
    for tensor in zoo.llama.FAMILY.tensors(config):
        yield dataclasses.replace(tensor, name=theirs(tensor.name))


def theirs(name: str) -> str:
    return name.replace("model.", "decoder.", 1)


MINE = dataclasses.replace(
    zoo.llama.FAMILY, name="Mine", model_type="mine", architectures={"MineForCausalLM": LanguageModel}, prefix="decoder.", tensors=tensors, presets={}
)  # fmt: skip


def test_a_family_of_ones_own_reads_and_writes_its_folders(tmp_path: Path, rewritten: Any, output: Any) -> None:
    def named(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {theirs(name): array for name, array in arrays.items()}

    folder = rewritten("llama", tmp_path / "mine", named, model_type="mine", architectures=["MineForCausalLM"])
    with pytest.raises(NotImplementedError, match=r"model_type: expected one of .*, received 'mine'"):
        from_pretrained(folder)
    np.testing.assert_array_equal(output(folder, family=MINE), output("llama"))
    model, variables = from_pretrained(folder, family=MINE)
    assert model.family == "mine"
    save_pretrained(tmp_path / "again", model, variables, family=MINE)
    written = json.loads((tmp_path / "again" / "config.json").read_text(encoding="utf-8"))
    assert (written["model_type"], written["architectures"]) == ("mine", ["MineForCausalLM"])
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    assert before.keys() == after.keys() and any(name.startswith("decoder.layers.0.") for name in after)
    np.testing.assert_array_equal(output(tmp_path / "again", family=MINE), output("llama"))
    with pytest.raises(ValueError, match="family: expected the one as which the model was read, a Family of 'mine', received None"):
        save_pretrained(tmp_path / "third", model, variables)
    with pytest.raises(NotImplementedError, match="model_type: expected 'mine', as family=Mine has it, received 'llama'"):
        output("llama", family=MINE)
