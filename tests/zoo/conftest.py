"""Goldens: folders that Hugging Face's transformers wrote, and what its models gave."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from runpy import run_path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from transformer_jax import from_pretrained

HERE = Path(__file__).parent
CASES: dict[str, dict[str, Any]] = {file.stem: run_path(str(file))["CASES"] for file in sorted((HERE / "cases").glob("*.py"))}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`golden` is each golden in turn; with all but the first of a file of cases the tests are long ones."""
    if "golden" in metafunc.fixturenames:
        metafunc.parametrize("golden", list(_goldens()))


def _goldens() -> Any:
    for cases in CASES.values():
        for n, name in enumerate(cases):
            yield pytest.param(HERE / "goldens" / name, id=name, marks=[pytest.mark.slow] if n else [])


@pytest.fixture(scope="session")
def rewritten() -> Callable[..., Path]:
    """`rewritten(name, folder, tensors, **fields)`: a golden in another layout, with the tensors that a function makes of its own, and further fields."""

    def rewrite(golden: str, folder: Path, tensors: Callable[[dict[str, Any]], Mapping[str, Any]] = dict, **fields: Any) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        values = {**json.loads((HERE / "goldens" / golden / "config.json").read_text(encoding="utf-8")), **fields}
        (folder / "config.json").write_text(json.dumps({name: value for name, value in values.items() if value is not None}), encoding="utf-8")
        arrays = tensors(load_file(HERE / "goldens" / golden / "model.safetensors"))
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "model.safetensors")
        return folder

    return rewrite


@pytest.fixture(scope="session")
def output() -> Callable[..., np.ndarray]:
    """`output(folder_or_golden, **options)`: what a folder's model makes of tokens with padding on the left; `method` and what `from_pretrained` takes."""

    def made(folder: Path | str, *, method: str = "__call__", **options: Any) -> np.ndarray:
        model, variables = from_pretrained(HERE / "goldens" / folder, **options)  # an absolute path stays as it is
        tokens = 5 + jnp.arange(14).reshape(2, 7)
        valid = jnp.ones(tokens.shape, bool).at[0, :2].set(False)
        return np.asarray(model.apply(variables, tokens, valid=valid, method=method))

    return made
