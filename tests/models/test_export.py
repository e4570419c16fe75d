"""Programs that jax.export stores, run by another process which builds no model."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from transformer_jax.models import DecoderOnlyConfig

LENGTH = 9
ELSEWHERE = """
import pickle, sys
from pathlib import Path
import jax
from jax import export
import transformer_jax  # knows what a cache is
folder = Path(sys.argv[1])
variables, tokens, cache = pickle.loads((folder / "given").read_bytes())
features, step = (export.deserialize((folder / name).read_bytes()) for name in ("features", "step"))
out = features.call(variables, tokens), step.call(variables, tokens[:, :1], cache)[0]
(folder / "out").write_bytes(pickle.dumps(jax.device_get(out)))
"""


@pytest.mark.slow
def test_features_and_a_step_run_elsewhere_for_any_batch(decoders: dict[str, DecoderOnlyConfig], filled: Any, close: Any, tmp_path: Path) -> None:
    model = decoders["llama"].make()
    variables = filled(model, *model.config.example())
    (b,) = export.symbolic_shape("b")
    whole, one = (jax.ShapeDtypeStruct((b, length), jnp.int32) for length in (LENGTH, 1))
    cache = jax.eval_shape(lambda tokens: model.init_cache(tokens.shape[0], LENGTH), one)
    programs = {
        "features": export.export(jax.jit(lambda v, tokens: model.apply(v, tokens, method="features")))(variables, whole),
        "step": export.export(jax.jit(lambda v, tokens, cache: model.apply(v, tokens, cache, method="step")))(variables, one, cache),
    }
    for name, program in programs.items():
        (tmp_path / name).write_bytes(program.serialize())
    tokens = np.random.default_rng(0).integers(0, 29, (3, LENGTH)).astype("int32")
    given = jax.device_get((variables, tokens, model.init_cache(3, LENGTH)))
    (tmp_path / "given").write_bytes(pickle.dumps(given))
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", ELSEWHERE, str(tmp_path)], env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    features, logits = pickle.loads((tmp_path / "out").read_bytes())
    close(features, model.apply(variables, tokens, method="features"))
    close(logits, model.apply(variables, tokens[:, :1], given[2], method="step")[0])
