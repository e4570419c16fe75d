"""Published families: the outputs of their published implementation, from its own folders, and back into such folders."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from transformer_jax import EncoderDecoder, from_pretrained, save_pretrained, unstacked
from transformer_jax.precision import Precision
from transformer_jax.zoo.family import without_training

CLOSE = 1e-5  # of the largest output, in float32
OUTPUTS = "encoded", "features", "pooled", "logits"


def outputs(model: Any, variables: Any, given: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """What a golden may have."""
    valid, tokens = given["valid"], given["tokens"]
    options = {name: given[name] for name in ("token_types", "positions") if name in given}
    if isinstance(model, EncoderDecoder):
        side = {f"source_{name}": value for name, value in {**options, "valid": valid}.items()}
        if "target_valid" in given:
            side |= {f"target_{name}": value for name, value in {**options, "valid": given["target_valid"]}.items()}
        encoded = model.apply(variables, tokens, valid=valid, **options, method="encode")
        return {"encoded": encoded, "logits": model.apply(variables, tokens, given["target"], **side)}
    methods = {"features": "features", "logits": "__call__", **({"pooled": "pooled"} if getattr(model.config, "pooler", False) else {})}
    return {name: model.apply(variables, tokens, valid=valid, **options, method=method) for name, method in methods.items()}


def test_outputs_are_those_of_the_published_implementation(golden: Path) -> None:
    everything = load_file(golden / "expected.safetensors")
    paddings, names = (sorted({name.split(".")[n] for name in everything}) for n in (0, 1))
    given = {name: np.concatenate([everything[f"{padding}.{name}"] for padding in paddings]) for name in names}  # one batch of all
    expected = {name: given.pop(name) for name in OUTPUTS if name in given}
    given |= {name: given[name].astype(bool) for name in ("valid", "target_valid") if name in given}
    model, variables = from_pretrained(golden)
    made = jax.jit(lambda given: {name: value for name, value in outputs(model, variables, given).items() if name in expected})(given)
    assert expected and expected.keys() == made.keys()
    for name, theirs in expected.items():
        ours = np.asarray(made[name])
        assert ours.shape == theirs.shape and np.isfinite(ours).all()
        if ours.shape[:2] == given["valid"].shape:  # what stands at padding is nobody's concern
            ours, theirs = (a[given["valid"]] for a in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=CLOSE * np.abs(theirs).max(), err_msg=name)


def test_writing_gives_back_the_folder(golden: Path, tmp_path: Path) -> None:
    values = json.loads((golden / "config.json").read_text(encoding="utf-8"))
    model, variables = from_pretrained(golden, precision=Precision("bfloat16"))
    save_pretrained(tmp_path, model, variables, family=values["model_type"])
    before, after = (load_file(folder / "model.safetensors") for folder in (golden, tmp_path))
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert array.dtype == after[name].dtype and np.array_equal(array, after[name]), name
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["architectures"] == values["architectures"]


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=pytest.mark.slow)])
def test_writing_and_reading_again_changes_no_bit(golden: Path, tmp_path: Path, dtype: Any) -> None:
    model, variables = from_pretrained(golden, precision=Precision(dtype))
    save_pretrained(tmp_path, model, variables)
    again, same = from_pretrained(tmp_path, precision=Precision(dtype))
    assert without_training(again.config) == without_training(model.config)
    assert jax.tree.structure(variables) == jax.tree.structure(same)
    for a, b in zip(jax.tree.leaves(variables), jax.tree.leaves(same)):
        assert a.dtype == b.dtype == dtype and np.array_equal(a, b)


@pytest.mark.parametrize("name", ["gemma2", "deepseek-v3", "t5"])
def test_layers_one_by_one_are_read_and_written_as_stacked_ones(name: str, tmp_path: Path) -> None:
    folder = Path(__file__).parent / "goldens" / name
    model, variables = from_pretrained(folder, precision=Precision("bfloat16"), stacked=False)
    _, expected = unstacked(*from_pretrained(folder, precision=Precision("bfloat16")))
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, expected))
    save_pretrained(tmp_path, model, variables)
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path))
    assert before.keys() == after.keys() and all(np.array_equal(array, after[name]) for name, array in before.items())
