"""A tiny experiment in a file, run by the scripts as a user runs them: in processes of their own, or in this one where that is as good."""

import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"

CONFIG = '''
from transformer_jax.data import Text
from transformer_jax.layers import Attention, Causal, Dense, Group, Residual, RMSNorm, Rope, Stack
from transformer_jax.models import DecoderOnlyConfig
from transformer_jax.training import AdamW, Experiment, Run, WarmupCosine


def config(*, data: tuple[str, ...] = ("words.txt",), d_model: int = 16, num_heads: int = 2, steps: int = 120, seed: int = 0) -> Experiment:
    attention = Residual(Attention(num_heads, mask=Causal(), position=Rope()), pre=RMSNorm())
    stack = Stack((Group(2, (attention, Residual(Dense(23), dropout=0.1))),), final_norm=RMSNorm())
    model = DecoderOnlyConfig(None, d_model=d_model, max_length=12, stack=stack)
    run = Run("runs/tiny", steps=steps, batch=4, seed=seed, steps_per_call=5, evaluate_every=40, checkpoint_every=10, keep=3, sample_tokens=9)
    return Experiment(model, data=Text(data), optimizer=AdamW(0.02), schedule=WarmupCosine(10), run=run)
'''


class Done(NamedTuple):
    code: int
    out: str
    err: str


def fill(folder: Path) -> Path:
    """Puts the config and a text of 3,000 characters there."""
    rng = np.random.default_rng(0)
    words = ["to", "be", "or", "not", "the", "question", "that", "is", "\n"]
    (folder / "words.txt").write_text(" ".join(rng.choice(words) for _ in range(1200))[:3000])
    (folder / "tiny_lm.py").write_text(CONFIG)
    return folder


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with tiny_lm.py and words.txt."""
    monkeypatch.chdir(fill(tmp_path))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of processes, which find the programs that the first of them compiled."""
    path = os.pathsep.join([str(SCRIPTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return {**inherited, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1", **cache}


@pytest.fixture(scope="session")
def start(environment: dict[str, str]) -> Callable[..., subprocess.Popen[str]]:
    """`start(folder, "train.py", ...)`: the script, running in that folder."""

    def popen(folder: Path, script: str, *args: str, **how: Any) -> subprocess.Popen[str]:
        command = [sys.executable, str(SCRIPTS / script), *args]
        return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)

    return popen


@pytest.fixture(scope="session")
def run(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., Done]:
    """`run(folder, "train.py", ...)`: exit status and outputs."""

    def wait(folder: Path, script: str, *args: str) -> Done:
        process = start(folder, script, *args)
        out, err = process.communicate(timeout=120)
        return Done(process.returncode, out, err)

    return wait


@pytest.fixture
def inside(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """`inside("train.py", ...)`: the same in this process, without the start."""

    def call(script: str, *args: str) -> Done:
        monkeypatch.setattr(sys, "argv", [script, *args])
        code: Any = 0
        capsys.readouterr()
        try:
            runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return Done(code, *captured) if isinstance(code, int) else Done(1, captured.out, f"{captured.err}{code}\n")

    return call


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, run: Callable[..., Done]) -> Path:
    """A folder in which the tiny experiment was trained, without a break, to runs/tiny."""
    folder = fill(tmp_path_factory.mktemp("finished"))
    done = run(folder, "train.py", "tiny_lm.py")
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="session")
def saved() -> Callable[[Path], Any]:
    """`saved(folder)`: state and data position in the last checkpoint of folder/runs/tiny, as orbax alone reads them."""

    def read(folder: Path) -> Any:
        with ocp.CheckpointManager((folder / "runs" / "tiny" / "checkpoints").resolve()) as manager:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(), data=ocp.args.JsonRestore())
            found = manager.restore(manager.latest_step(), args=args)
        return jax.tree.map(np.asarray, found["state"]), found["data"]

    return read
