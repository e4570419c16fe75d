"""`scripts/sample.py` writes what `stream` gives, as it comes, and answers to what cannot be sampled from."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from transformer_jax import generate
from transformer_jax.generation import Sampling
from transformer_jax.training import load_run

TINY = Path("runs") / "tiny"


def test_it_writes_the_text_that_generate_gives_the_same_for_the_same_seed(finished: Path, inside: Callable[..., Any]) -> None:
    flags = ["--max-new-tokens", "40", "--temperature", "0.8", "--top-k", "5", "--seed", "1"]
    done = inside("sample.py", str(finished / TINY), "--prompt", "to be ", *flags)
    model, variables, vocabulary = load_run(finished / TINY)
    new = generate(model, variables, vocabulary.encode("to be ")[None], 40, key=jax.random.key(1), sampling=Sampling(0.8, top_k=5))
    assert (done.code, done.err) == (0, "")
    assert done.out == "to be " + vocabulary.decode(np.asarray(new[0])) + "\n"
    assert inside("sample.py", str(finished / TINY), "--prompt", "to be ", *flags) == done
    assert inside("sample.py", str(finished / TINY), "--prompt", "to be ", *flags[:-1], "2").out != done.out


def test_the_text_comes_in_pieces_while_it_is_written(finished: Path, start: Callable[..., Any]) -> None:
    """It would take hours to write all that is asked for; the first pieces are there at once."""
    process = start(finished, "sample.py", str(TINY), "--prompt", "to be ", "--max-new-tokens", "100000000")
    try:
        pieces: list[bytes] = []
        while len(b"".join(pieces)) < 50:
            pieces.append(os.read(process.stdout.fileno(), 4096))
            assert pieces[-1], process.stderr.read()
        assert b"".join(pieces).startswith(b"to be ") and len(pieces) > 2
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


def test_temperature_zero_needs_no_luck(finished: Path, inside: Callable[..., Any]) -> None:
    first, second = (inside("sample.py", str(finished / TINY), "--temperature", "0", "--max-new-tokens", "20", "--seed", seed) for seed in "12")
    assert first == second and first.code == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt", "to be or not "], "sample.py: error: --prompt: expected 1 to 12 tokens (the model's max_length), received 13; give the end of it"),
        (["--prompt", ""], "sample.py: error: --prompt: expected 1 to 12 tokens (the model's max_length), received 0"),
        (["--max-new-tokens", "0"], "sample.py: error: max_new_tokens: expected at least 1, received 0"),
        (["--temperature", "-1"], "sample.py: error: temperature: expected a number of at least 0, received -1.0"),
        (["--top-p", "2"], "sample.py: error: top_p: expected a probability in (0, 1], received 2.0"),
        (["--import", "nowhere.py"], "sample.py: error: no such file: nowhere.py"),
        (["--tempature", "1"], "--temperature"),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_flags_that_cannot_work_are_answered(finished: Path, inside: Callable[..., Any], flags: list[str], message: str) -> None:
    done = inside("sample.py", str(finished / TINY), *flags)
    assert done.code in (1, 2) and done.out == "" and message in done.err and "Traceback" not in done.err


def write(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "run: there is no such folder"),
        (lambda folder: (folder / "config.json").unlink(), "run: expected the folder of a run, received one without config.json"),
        (write("config.json", '{"type": '), "config.json: not JSON"),
        (write("config.json", '{"type": "transformer_jax.data.text:Text"}'), "config.json: expected a Experiment, received Text"),
        (write("tokenizer.json", "{"), "tokenizer.json: expected a vocabulary, as Vocabulary.save writes it, received a file that is none"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda folder: shutil.rmtree(folder / "checkpoints"), "run: there is no checkpoint yet; go on training with --resume"),
    ],
    ids=["no folder", "no config", "half a config", "another config", "half a vocabulary", "no vocabulary", "no checkpoint"],
)
def test_a_folder_that_is_no_run_is_answered(
    finished: Path, tmp_path: Path, inside: Callable[..., Any], damage: Callable[[Path], Any], message: str
) -> None:
    shutil.copytree(finished / TINY, tmp_path / "run")
    damage(tmp_path / "run")
    done = inside("sample.py", str(tmp_path / "run"), "--max-new-tokens", "1")
    assert done.code == 1 and done.out == "" and done.err.startswith("sample.py: error: ") and message in done.err and done.err.count("\n") == 1


def test_without_a_folder_the_usage_is_shown(inside: Callable[..., Any]) -> None:
    done = inside("sample.py")
    assert done.code == 2 and "a run's folder, such as runs/char_lm" in done.err
