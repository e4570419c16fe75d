"""The steps of recipes, made for GPUs that are not here: `auto` takes the kernels meant for the chip, and the program lowers."""

import functools
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from pallas_kernels.flash.backends import hopper
from transformer_jax.precision import Precision
from transformer_jax.training import init_state, train_step

CONFIGS = Path(__file__).parents[2] / "configs"


def lowered_step(recipe: str, precision: Precision, chip: str) -> str:
    made = runpy.run_path(str(CONFIGS / f"{recipe}.py"))["config"]()
    config = made.model.filled_in(512, 7)
    optimizer = functools.partial(made.optimizer.make, made.schedule.make(made.optimizer.learning_rate, 100))
    state = jax.eval_shape(lambda key: init_state(config.make(), optimizer, key, *config.example()), jax.random.key(0))
    step = train_step(config.make(precision=precision, training=True), made.objective, optimizer)
    batch = {"tokens": jax.ShapeDtypeStruct((2, config.max_length + 1), jnp.int32)}
    device = AbstractDevice(chip, None, "gpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device)):
        return str(jax.jit(step).trace(state, batch, jax.random.key(0)).lower(lowering_platforms=("cuda",)).as_text())


@pytest.mark.skipif(jax.__version_info__ < hopper.NEEDED, reason="the kernels for GPUs need jax 0.11.2, and that Python 3.12")
@pytest.mark.parametrize("recipe", ["char_lm", "bpe_lm"])
def test_the_step_of_a_recipe_takes_the_kernels_of_hopper(recipe: str) -> None:
    program = lowered_step(recipe, Precision(compute="bfloat16"), "NVIDIA H100 80GB HBM3")
    assert all(f"attention_{kernel}" in program for kernel in ("forward", "dq", "dk_dv"))


@pytest.mark.skipif(jax.__version_info__ >= hopper.NEEDED, reason="what older versions of jax do")
def test_a_gpu_without_kernels_gets_the_tiles_of_jnp() -> None:
    assert "attention_" not in lowered_step("char_lm", Precision(), "NVIDIA H100 80GB HBM3")
