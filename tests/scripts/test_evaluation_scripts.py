"""`scripts/evaluate.py` and `scripts/attention_map.py` on tiny runs, and what they answer to input that cannot work."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import matplotlib.image
import numpy as np
import pytest

pytestmark = pytest.mark.slow
TINY = Path("runs") / "tiny"

TASKS = '''
from dataclasses import dataclass

import grain
import numpy as np

from transformer_jax.data import Data, Prepared
from transformer_jax.layers import Attention, Causal, CrossAttention, Dense, Group, NoMask, Residual, SequenceClassifier, Stack
from transformer_jax.models import EncoderDecoderConfig, EncoderOnlyConfig
from transformer_jax.tokenize import CharacterVocabulary
from transformer_jax.training import Experiment, Run, SequenceLabels, SourceToTarget


@dataclass(frozen=True)
class Words(Data):
    """Words of the letters a to e: their class is their first letter's, their target the word backwards."""

    pairs: bool

    def prepare(self, context: int) -> Prepared:
        words = np.random.default_rng(0).integers(0, 5, (40, 6)).astype(np.int32)
        examples = [{"source": word, "target": word[::-1]} if self.pairs else {"tokens": word, "label": word[0]} for word in words]
        parts = (grain.MapDataset.source(part) for part in (examples[:29], examples[29:]))
        return Prepared(CharacterVocabulary("abcde"), *parts, "words", "0", () if self.pairs else ("[red]", "green", "blue", "yellow", "white"))


def config(*, pairs: bool = False, attends: bool = True) -> Experiment:
    mlp = Residual(Dense(11))
    encoder = Stack((Group(1, (Residual(Attention(2, mask=NoMask())) if attends else mlp, mlp)),))
    decoder = Stack((Group(2, (Residual(Attention(3, mask=Causal(), head_dim=2)), Residual(CrossAttention(2)))),))
    size = {"d_model": 8, "max_length": 7}
    if pairs:
        model = EncoderDecoderConfig(None, encoder=encoder, decoder=decoder, **size)
    else:
        model = EncoderOnlyConfig(None, stack=encoder, head=SequenceClassifier(), **size)
    return Experiment(model, data=Words(pairs), objective=SourceToTarget() if pairs else SequenceLabels(), run=Run("runs/tiny", steps=1, batch=3))
'''


@pytest.fixture
def quick() -> Iterator[None]:
    """Compiles without most optimisations."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def trained(workplace: Path, inside: Callable[..., Any]) -> Callable[..., Path]:
    """`trained(*flags)`: a run of the tasks, after one step."""
    (workplace / "tiny_tasks.py").write_text(TASKS)

    def train(*flags: str) -> Path:
        done = inside("train.py", "tiny_tasks.py", *flags)
        assert done.code == 0, done.err
        return TINY

    return train


@pytest.fixture
def finished_run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run of text to write in, and its text in the current folder."""
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return TINY


def picture(path: Path) -> np.ndarray:
    pixels = matplotlib.image.imread(path)[..., :3]
    assert pixels.std() > 0.05
    return pixels


def test_the_longest_stride_gives_what_training_reports_and_others_more_context(finished_run: Path, inside: Callable[..., Any]) -> None:
    reported = json.loads((finished_run / "run.json").read_text())
    done = inside("evaluate.py", str(TINY), "--stride", "12")
    found = json.loads((finished_run / "evaluation.json").read_text())
    assert (done.code, done.err) == (0, "") and done.out.endswith("runs/tiny/evaluation.json\n")
    assert found["loss"] == pytest.approx(reported["held_out_loss"], rel=1e-6) and found["accuracy"] == pytest.approx(reported["held_out_accuracy"])
    assert found["data"] == reported["data"] and re.search(rf"bits per byte +{found['bits_per_byte']:.4f}", done.out)
    assert inside("evaluate.py", str(TINY), "--limit", "9", "--out", "finer.json").code == 0
    finer = json.loads(Path("finer.json").read_text())
    assert (finer["labels"], finer["stride"]) == (9 * 12, 6)


@pytest.mark.usefixtures("quick")
def test_classes_have_a_table_and_a_picture(trained: Callable[..., Path], inside: Callable[..., Any]) -> None:
    trained()
    done = inside("evaluate.py", str(TINY), "--out", "found/it.json")
    assert done.code == 0 and done.err == "", done.err
    found = json.loads(Path("found/it.json").read_text())
    assert found["labels"] == np.sum(found["confusion"]) == 11
    assert found["loss"] == pytest.approx(json.loads((TINY / "run.json").read_text())["held_out_loss"], rel=1e-6)
    for name in ("[red]", "green", "support", "macro f1", "always the most frequent", "found/confusion.png"):
        assert name in done.out
    picture(Path("found/confusion.png"))
    answer = inside("evaluate.py", str(TINY), "--stride", "2")
    assert answer.code == 1 and "stride: expected none where examples are taken as they are" in answer.err
    assert inside("attention_map.py", str(TINY), "--text", "abc").out == "runs/tiny/attention.png\n"
    assert picture(TINY / "attention.png").shape[1] > picture(TINY / "attention.png").shape[0]  # one layer of two heads
    answer = inside("attention_map.py", str(TINY), "--text", "abc", "--target", "a")
    assert answer.code == 1 and "--target: expected none for a EncoderOnly, received 'a'; leave it out" in answer.err


@pytest.mark.usefixtures("quick")
def test_sources_have_their_wrong_targets_shown_and_maps_of_both_sides(trained: Callable[..., Path], inside: Callable[..., Any]) -> None:
    trained("--pairs")
    done = inside("evaluate.py", str(TINY))
    assert done.code == 0 and "exact match  0.0000" in done.out and done.out.count("(right: ") == 8, done
    assert len(json.loads((TINY / "evaluation.json").read_text())["wrong"]) == 8
    for flags in (["--target", "cba", "--out", "given.png"], ["--out", "made.png"], ["--target", "", "--layers", "1", "--out", "one.png"]):
        answer = inside("attention_map.py", str(TINY), "--text", "abc", *flags)
        assert answer.code == 0 and answer.err == "", answer.err
    heights = [picture(Path(name)).shape[0] for name in ("given.png", "one.png")]
    assert heights[0] > 1.5 * heights[1]  # five rows and two
    answer = inside("attention_map.py", str(TINY), "--text", "abc", "--target", "abcdeab")
    assert answer.code == 1 and "--target: expected 0 to 6 tokens (the model's max_length is 7), received 7; give a part of it" in answer.err


@pytest.mark.usefixtures("quick")
def test_a_model_that_does_not_attend_is_said_to_be_one(trained: Callable[..., Path], inside: Callable[..., Any]) -> None:
    trained("--no-attends")
    done = inside("attention_map.py", str(TINY), "--text", "abc")
    assert done.code == 1 and done.err.startswith("attention_map.py: error: runs/tiny: expected a model with attention, received one whose layers have none")
    assert not (TINY / "attention.png").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("evaluate.py --stride 0", "evaluate.py: error: Evaluation.stride: expected more than 0, received 0"),
        ("evaluate.py --stride 13", "evaluate.py: error: stride: expected 1 to 12 tokens (the length of a window), received 13"),
        ("evaluate.py --batch 0", "evaluate.py: error: Evaluation.batch: expected more than 0, received 0"),
        ("evaluate.py --limit -1", "evaluate.py: error: Evaluation.limit: expected more than 0, received -1"),
        ("evaluate.py --import nowhere.py", "evaluate.py: error: no such file: nowhere.py"),
        ("evaluate.py --strid 3", "--stride"),
        ("attention_map.py --text tobeornottobe", "--text: expected 1 to 12 tokens (the model's max_length is 12), received 13; give a part of it"),
        ("attention_map.py --text=", "--text: expected 1 to 12 tokens (the model's max_length is 12), received 0; give a text"),
        ("attention_map.py --text to --layers 0,2", "--layers: expected some of 0,1, received '2'"),
        ("attention_map.py", "--text"),
    ],
)
def test_flags_that_cannot_work_are_answered(finished_run: Path, inside: Callable[..., Any], line: str, message: str) -> None:
    script, *flags = line.split()
    done = inside(script, str(TINY), *flags)
    assert done.code in (1, 2) and done.out == "" and message in done.err and "Traceback" not in done.err
    assert not (TINY / "evaluation.json").exists() and not (TINY / "attention.png").exists()


def test_other_texts_than_those_of_the_training_are_refused(finished_run: Path, inside: Callable[..., Any]) -> None:
    words = Path("words.txt").read_text()
    Path("words.txt").write_text(words.replace("question", "answer"))
    done = inside("evaluate.py", str(TINY))
    assert done.code == 1 and done.err.startswith("evaluate.py: error: runs/tiny: expected the data that it was trained on, received other data from the same")
    Path("words.txt").unlink()
    done = inside("evaluate.py", str(TINY))
    assert done.code == 1 and "received 'words.txt', which does not exist" in done.err


@pytest.mark.parametrize(("script", "flags"), [("evaluate.py", []), ("attention_map.py", ["--text", "to"])])
def test_a_folder_that_is_no_run_is_answered(tmp_path: Path, inside: Callable[..., Any], script: str, flags: list[str]) -> None:
    done = inside(script, str(tmp_path / "nowhere"), *flags)
    assert done.code == 1 and done.err == f"{script}: error: {tmp_path}/nowhere: there is no such folder\n"
    done = inside(script, str(tmp_path), *flags)
    assert done.code == 1 and done.err == f"{script}: error: {tmp_path}: expected the folder of a run, received one without config.json\n"
