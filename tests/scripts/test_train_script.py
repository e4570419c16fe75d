"""What `scripts/train.py` takes, and what it answers to input that cannot work."""

import json
import math
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

TINY = Path("runs") / "tiny"


@pytest.fixture
def quick() -> Iterator[None]:
    """Compiles without most optimisations."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def refused(done: Any) -> str:
    """The message of a script that did nothing."""
    assert done.code in (1, 2) and done.out == "" and "Traceback" not in done.err
    assert not Path("runs").exists()
    return " ".join(re.sub("[│╭╮╰╯─]", " ", done.err).split())


def test_a_run_says_how_it_goes_and_ends_with_a_sample(finished: Path, run: Callable[..., Any]) -> None:
    lines = [json.loads(line) for line in (finished / TINY / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 120 and lines[-1]["held_out_loss"] < lines[0]["loss"] - 0.5
    note = json.loads((finished / TINY / "run.json").read_text())
    assert note["command"].endswith("train.py tiny_lm.py")
    again = run(finished, "train.py", "tiny_lm.py", "--resume")
    assert again.code == 0 and again.err == ""
    assert (finished / TINY / "sample.txt").read_text() in again.out
    assert f"runs/tiny: held out: loss {lines[-1]['held_out_loss']:.4f} nats, accuracy {lines[-1]['held_out_accuracy']:.2%}, " in again.out


@pytest.mark.usefixtures("quick", "workplace")
def test_parameters_paths_and_types_are_set_by_flags(inside: Callable[..., Any]) -> None:
    Path("other.txt").write_text("abcdefg " * 60)
    flags = "--data other.txt words.txt --d-model 32 --model.stack.groups.0.repeat 1 --optimizer lion --run.sample-tokens 1 --steps 5"
    done = inside("train.py", "tiny_lm.py", *flags.split())
    assert done.code == 0 and "3,480 characters" in done.out and "step 5/5 " in done.out
    config = json.loads((TINY / "config.json").read_text())
    assert config["data"]["files"] == ["other.txt", "words.txt"] and config["run"]["steps"] == 5
    assert config["model"]["d_model"] == 32 and config["model"]["stack"]["groups"][0]["repeat"] == 1
    assert config["optimizer"]["type"].endswith(":Lion") and config["optimizer"]["learning_rate"] == 0.02


@pytest.mark.usefixtures("quick", "workplace")
def test_attention_is_taken_from_the_backend_that_is_named(inside: Callable[..., Any]) -> None:
    done = inside("train.py", "tiny_lm.py", "--backend", "reference", "--run.sample-tokens", "1", "--steps", "1")
    assert done.code == 0, done.err
    assert json.loads((TINY / "config.json").read_text())["run"]["backend"] == "reference"


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--backend blockwize", "backend: expected one of auto, "),
        ("--data no.txt", "Text.files: expected UTF-8 text files, received 'no.txt', which does not exist (the current folder is /"),
        ("--data empty.txt", "Text.files: expected text, received only empty files: empty.txt"),
        ("--data short.txt", "expected at least 13 tokens (context + 1) in either part, received 14 to train on and 3 held out; give more text"),
        ("--data .", "received the folder '.'; name the files in it"),
        ("--d-model 15", "Attention.num_heads: expected a divisor of d_model = 15, received 2; choose another, or set head_dim"),
        ("--num-heads 3", "Attention.num_heads: expected a divisor of d_model = 16, received 3"),
        ("--model.stack.groups.0.sublayers.0.layer.num-kv-heads 3", "Attention.num_kv_heads: expected a divisor of num_heads = 2, received 3"),
        ("--d-modle 32", "unknown flag --d-modle (nearest: --d-model)"),
        ("--run.prefetch 3", "unknown flag --run.prefetch"),
        ("--optimizer lain", "--optimizer: expected one of adam-w, lion, sgd; received 'lain' (nearest: lion)"),
        ("--d-model wide", "--d-model: invalid literal for int() with base 10: 'wide'"),
        ("--steps 0", "Run.steps: expected more than 0, received 0"),
        ("--run.batch 4 --run.accumulate 3", "Run.accumulate: expected a divisor of batch = 4, received 3"),
        ("--run.prompt=", "Run.prompt: expected a text of at least one character, received ''"),
        ("--run.backend quick", "backend: expected one of auto, "),
        ("--optimizer.learning-rate -1", "AdamW.learning_rate: expected more than 0, received -1.0"),
        ("--import nowhere.py", "no such file: nowhere.py"),
    ],
)
def test_input_that_cannot_work_is_answered_and_leaves_no_folder(inside: Callable[..., Any], line: str, message: str) -> None:
    Path("empty.txt").touch()
    Path("short.txt").write_text("to be or not to.")
    assert message in refused(inside("train.py", "tiny_lm.py", *line.split()))


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("source", "content", "message"),
    [
        ("nowhere.py", None, "train.py: error: nowhere.py: no such file"),
        ("nowhere.json", None, "train.py: error: nowhere.json: no such file"),
        ("broken.json", "{", "broken.json: not JSON"),
        ("nothing.py", "", "nothing.py: expected a function `config`, found none"),
        ("failing.py", "import no_such_module", "failing.py:1: No module named 'no_such_module'"),
        ("model.py", "from transformer_jax.training import AdamW\ndef config(): return AdamW()", "expected a config of type Experiment, received AdamW"),
        ("--steps", None, "usage: train.py CONFIG [flags]; a config is a file such as configs/char_lm.py"),
    ],
)
def test_a_config_that_is_none_is_answered_with_its_name(inside: Callable[..., Any], source: str, content: str | None, message: str) -> None:
    if content is not None:
        Path(source).write_text(content)
    assert message in refused(inside("train.py", source))


OWN = """
from dataclasses import dataclass
from transformer_jax.layers import Dense

@dataclass(frozen=True)
class Own(Dense):
    pass
"""


@pytest.mark.slow
@pytest.mark.usefixtures("quick", "workplace")
def test_a_class_of_ones_own_is_imported_by_name_in_every_script(inside: Callable[..., Any], finished: Path) -> None:
    Path("own_mlp.py").write_text(OWN)
    config = (finished / TINY / "config.json").read_text()
    Path("own.json").write_text(config.replace("transformer_jax.layers.mlps.dense:Dense", "own_mlp:Own"))
    flags = ["--run.steps", "2", "--run.sample-tokens", "1"]
    message = "model.stack.groups.0.sublayers.1.layer: expected a class of an imported module, received 'own_mlp:Own'; import the module that defines it first"
    answer = refused(inside("train.py", "own.json", *flags))
    assert message in answer and "--import FILE|MODULE" in answer
    done = inside("train.py", "own.json", "--import", "own_mlp.py", *flags)
    assert done.code == 0, done.err
    sample = inside("sample.py", str(TINY), "--import", "own_mlp.py", "--max-new-tokens", "1")
    assert sample.code == 0 and len(sample.out) == 3
    other = json.loads((TINY / "config.json").read_text())
    other["model"]["stack"]["groups"][0]["sublayers"][1]["layer"]["type"] = "not_imported:Own"
    (TINY / "config.json").write_text(json.dumps(other))
    answer = inside("sample.py", str(TINY))
    assert answer.code == 1 and "received 'not_imported:Own'" in answer.err and "--import FILE|MODULE" in answer.err


@pytest.mark.usefixtures("workplace")
def test_resuming_with_another_config_names_the_field_both_values_and_the_way_out(inside: Callable[..., Any], finished: Path) -> None:
    shutil.copytree(finished / "runs", "runs")
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
    done = inside("train.py", "tiny_lm.py", "--resume", "--steps", "240", "--optimizer", "lion")
    assert done.code == 1 and done.out == ""
    assert done.err == (
        "train.py: error: --resume: expected the config that runs/tiny was started with, received one with "
        "run.steps: 120 -> 240; optimizer: AdamW -> Lion; leave --resume out to start anew, or from its parameters by --run.start\n"
    )
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")} == before


@pytest.mark.usefixtures("quick", "workplace")
def test_a_loss_that_turns_nan_stops_the_run_and_names_the_step(inside: Callable[..., Any]) -> None:
    none = [f"--model.stack.{path} no-norm" for path in ("final-norm", "groups.0.sublayers.0.pre")]
    flags = " ".join(["--optimizer.learning-rate 1000 --optimizer.clip-norm 0 --schedule constant --run.checkpoint-every 1 --run.steps-per-call 2", *none])
    done = inside("train.py", "tiny_lm.py", *flags.split())
    expected = r"train\.py: error: step (\d+): expected finite numbers, received .*; the checkpoint of step (\d+) is the last good one; try .*\n"
    found = re.fullmatch(expected, done.err)
    assert done.code == 1 and found, done
    step, good = map(int, found.groups())
    lines = [json.loads(line) for line in (TINY / "metrics.jsonl").read_text().splitlines()]
    assert good < step and [line["step"] for line in lines] == list(range(1, step))
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert (TINY / "checkpoints" / str(good)).exists()


def test_help_lists_flags_with_types_and_defaults_in_three_seconds(workplace: Path, run: Callable[..., Any]) -> None:
    """Seconds of its own: the machine may be busy with something else."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run(workplace, "train.py", "tiny_lm.py", "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", done.out).split())
    for flag in ("--d-model INT (default: 16)", "--resume, --no-resume", "--optimizer {adam-w,lion,sgd}", "--model.stack.groups.0.repeat INT (default: 2)"):
        assert flag in text, flag
    assert done.code == 0 and not (workplace / "runs").exists()
