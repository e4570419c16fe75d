"""The transformer of 2017 has a format of its own, in which the models of configs/dates.py can be written too."""

import json
from pathlib import Path
from runpy import run_path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import from_pretrained, save_pretrained

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_model_that_writes_dates_survives_a_trip(tmp_path: Path) -> None:
    config = run_path(str(ROOT / "configs" / "dates.py"))["config"](d_model=20, num_layers=2, num_heads=5, context=17).model.replace(vocab_size=31)
    source, target = jnp.arange(11)[None], jnp.arange(7)[None] + 5
    model = config.make()
    variables = jax.jit(model.init)(jax.random.key(1), source, target)
    save_pretrained(tmp_path, model, variables)
    again, same = from_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["N"] == 2
    np.testing.assert_array_equal(again.apply(same, source, target), model.apply(variables, source, target))
