"""`scripts/describe.py` says what a model costs without data, and answers to input that cannot work as `train.py` does."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transformer_jax import from_pretrained, save_pretrained
from transformer_jax.layers import SentenceEmbedding

SCRIPTS = Path(__file__).parents[2] / "scripts"
TINY = Path("runs") / "tiny"

MIXER = '''
from dataclasses import dataclass

import flax.linen as nn
from transformer_jax.layers import Linear, Mixer, MixerModule


@dataclass(frozen=True)
class Turned(Mixer):
    angle: float = 0.5

    def make(self, build):
        return TurnedModule(self, build)


class TurnedModule(MixerModule):
    @nn.compact
    def __call__(self, x, context):
        d = self.build.d_model
        return Linear((d,), (d,), "attention_out", self.build)(x * self.config.angle)
'''


@pytest.mark.slow
@pytest.mark.usefixtures("workplace")
def test_a_recipe_is_described_without_its_data_and_flags_change_it(inside: Callable[..., Any]) -> None:
    Path("words.txt").unlink()
    done = inside("describe.py", "tiny_lm.py", "--d-model", "32", "--model.stack.groups.0.repeat", "3", "--batch", "5", "--vocab-size", "97", "--length", "11")
    assert (done.code, done.err) == (0, "")
    for text in (
        "vocabulary: 97\n",
        "stack 0: 3 times\n  0.0 ├→ RMSNorm → Attention(2, mask=Causal, position=Rope) ─┐",
        "← dropout 0.1 ─",
        "5 sequences of 11 tokens",
        f"{3 * 4 * 32**2:,}",
        "T^2 products cost as much as the MLPs at T = 23\n",
    ):
        assert text in done.out
    assert not list(Path().rglob("*.png")) and not Path("runs").exists()
    assert "256 is assumed" in inside("describe.py", "tiny_lm.py", "--plot", "flops.png").out
    assert Path("flops.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("recipe", "texts"),
    [
        ("token_types.py", ("classes: 8 are assumed", "head: TokenClassifier(num_labels=8)", "No cache\n", "MLPs at T = 96\n")),
        ("dates.py", ("decoder 0.1 CrossAttention", "per source token", "S x T is T^2\n", "MLPs at T = 85\n")),
    ],
)
def test_models_of_other_shapes_are_described(inside: Callable[..., Any], recipe: str, texts: tuple[str, ...]) -> None:
    done = inside("describe.py", str(SCRIPTS.with_name("configs") / recipe), "--d-model", "32", "--batch", "3", "--length", "7")
    assert (done.code, done.err) == (0, "") and "3 sequences of 7 tokens" in done.out and all(text in done.out for text in texts)


@pytest.mark.slow
@pytest.mark.parametrize("given", ["folder", "config.json"])
def test_a_run_is_described_and_its_plot_is_put_beside_it(finished: Path, tmp_path: Path, inside: Callable[..., Any], given: str) -> None:
    shutil.copytree(finished / TINY, tmp_path / "run")
    done = inside("describe.py", str(tmp_path / "run" / ("" if given == "folder" else given)))
    assert done.code == 0 and "4 sequences of 12 tokens" in done.out and "assumed" not in done.out
    assert (tmp_path / "run" / "describe.png").exists()


@pytest.mark.usefixtures("workplace")
def test_a_mixer_from_a_file_of_one_s_own_is_drawn_and_counted(inside: Callable[..., Any]) -> None:
    Path("turned.py").write_text(MIXER)
    flags = ["--import", "turned.py", "--model.stack.groups.0.sublayers.0.layer", "turned", "--model.stack.groups.0.sublayers.0.layer.angle", "0.25"]
    done = inside("describe.py", "tiny_lm.py", *flags)
    assert (done.code, done.err) == (0, "")
    assert "RMSNorm → Turned(angle=0.25)" in done.out
    row = next(line for line in done.out.splitlines() if line.startswith("stack 0.0 Turned"))
    assert row.split()[3:7] == ["512", "1.02", "k", "3.07"]


def test_a_model_without_a_head_is_described_with_a_loss_that_is_told(inside: Callable[..., Any], tmp_path: Path) -> None:
    goldens = Path(__file__).parents[1] / "zoo" / "goldens"
    model, variables = from_pretrained(goldens / "bert-model", head=SentenceEmbedding())
    save_pretrained(tmp_path, model, variables)
    for folder, head in ((goldens / "bert-model", "NoHead"), (goldens / "t5-model", "NoHead"), (tmp_path, "SentenceEmbedding")):
        done = inside("describe.py", str(folder), "--length", "8")
        assert (done.code, done.err) == (0, "")
        assert f"loss: the sum of what the model gives is assumed, as {head} has none" in done.out


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tiny_lm.py --length 13", "describe.py: error: --length: expected at most 12 (the model's max_length), received 13; raise --model.max-length too"),
        ("tiny_lm.py --batch 0", "batch: expected more than 0, received 0"),
        ("tiny_lm.py --vocab-size many", "'many'"),
        ("tiny_lm.py --d-modle 32", "describe.py: error: unknown flag --d-modle (nearest: --d-model)"),
        ("tiny_lm.py --num-heads 3", "Attention.num_heads: expected a divisor of d_model = 16, received 3"),
        ("tiny_lm.py --run.backend quick", "describe.py: error: backend: expected one of auto, "),
        ("tiny_lm.py --import nowhere.py", "describe.py: error: no such file: nowhere.py"),
        ("nowhere.py", "describe.py: error: nowhere.py: no such file"),
        ("lama-3.2-1b", "describe.py: error: name: expected a preset, received 'lama-3.2-1b' (nearest: llama-3.2-1b"),
        (".", "describe.py: error: config.json: no such file"),
        ("", "usage: describe.py CONFIG|RUN|PRESET|FOLDER [flags]"),
    ],
)
def test_input_that_cannot_work_is_answered(inside: Callable[..., Any], line: str, message: str) -> None:
    done = inside("describe.py", *line.split())
    assert done.code in (1, 2) and message in " ".join(done.err.split()) and "Traceback" not in done.err


@pytest.mark.usefixtures("workplace")
def test_help_lists_the_script_s_flags_and_the_recipe_s(inside: Callable[..., Any]) -> None:
    done = inside("describe.py", "tiny_lm.py", "--help")
    assert done.code == 0 and "--vocab-size N" in done.out and "--d-model" in done.out
