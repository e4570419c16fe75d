"""The recipe that the README starts with, in float32 and with compute in bfloat16."""

import json
from pathlib import Path

import pytest

from transformer_jax.command_line import load
from transformer_jax.training import Experiment, train

CHAR_LM = Path(__file__).parents[2] / "configs" / "char_lm.py"


@pytest.mark.slow
def test_char_lm_ends_near_the_same_loss(tmp_path: Path) -> None:
    losses = []
    for compute in ("float32", "bfloat16"):
        flags = ["--run.folder", str(tmp_path / compute), "--run.precision.compute", compute]
        experiment, _ = load(str(CHAR_LM), flags, expected=Experiment, prog="train.py")
        folder = train(experiment)
        losses.append(json.loads((folder / "run.json").read_text())["held_out_loss"])
    assert losses[0] < 1.41  # what nanoGPT reaches with the same data, sizes and steps
    assert losses[1] == pytest.approx(losses[0], abs=0.02)
