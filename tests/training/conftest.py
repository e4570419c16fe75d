"""A tiny experiment, and ways to compile less: most of these tests' time is XLA's."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from transformer_jax.data import Text
from transformer_jax.layers import Attention, Causal, Dense, Group, Residual, RMSNorm, Rope, Stack
from transformer_jax.models import DecoderOnlyConfig
from transformer_jax.training import AdamW, Experiment, Run, WarmupCosine


@pytest.fixture
def quick() -> Iterator[None]:
    """Values only: compiles without most optimisations, which the comparison does not depend on."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whole runs of the same experiment compile anew each time; here they find the programs of the first, compiled without most optimisations."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_persistent_cache_min_entry_size_bytes")
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (str(tmp_path_factory.mktemp("compiled")), 0, -1)):
        jax.config.update(name, value)
    jax.config.update("jax_disable_most_optimizations", True)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    for name, value in zip(names, before):
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """5,000 characters, in words."""
    rng = np.random.default_rng(0)
    words = ["to", "be", "or", "not", "the", "question", "that", "is"]
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(rng.choice(words) for _ in range(1500))[:5000])
    return str(path)


@pytest.fixture(scope="session")
def experiment(text_file: str) -> Callable[..., Experiment]:
    """`experiment(folder, **run)`: 30 steps of one layer; evaluated every 10, saved every 6, of which it keeps 2."""

    def make(folder: Path | str = "unused", **changes: Any) -> Experiment:
        attention = Residual(Attention(2, mask=Causal(), position=Rope()), pre=RMSNorm())
        stack = Stack((Group(1, (attention, Residual(Dense(23), pre=RMSNorm()))),))
        model = DecoderOnlyConfig(None, d_model=16, max_length=11, stack=stack)
        run = {"steps": 30, "batch": 5, "steps_per_call": 4, "evaluate_every": 10, "checkpoint_every": 6, "sample_tokens": 17, "prompt": "to", "seed": 3}
        return Experiment(model, data=Text((text_file,)), optimizer=AdamW(0.02), schedule=WarmupCosine(4), run=Run(str(folder), **{**run, **changes}))

    return make


@pytest.fixture(scope="session")
def saved() -> Callable[[Path], Any]:
    """`saved(folder)`: state and data position in a run's last checkpoint, as orbax alone reads them."""

    def read(folder: Path) -> Any:
        with ocp.CheckpointManager((folder / "checkpoints").resolve()) as manager:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(), data=ocp.args.JsonRestore())
            found = manager.restore(manager.latest_step(), args=args)
        return jax.tree.map(np.asarray, dict(found.items())["state"]), found["data"]

    return read
