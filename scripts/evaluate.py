"""Says what a trained model is worth: `python scripts/evaluate.py runs/char_lm`."""

import json
import sys
from pathlib import Path
from typing import Any

import rich.console
import rich.table

from transformer_jax.evaluation import Evaluation, evaluate, load_trained
from transformer_jax.training.files import write_whole
from transformer_jax.training.script import run_script

UNITS = {"loss": "nats per label"}


def main(run: str, /, stride: int | None = None, batch: int | None = None, limit: int | None = None, out: str = "") -> None:
    """Evaluates a trained model on what its data holds out, by its objective; writes evaluation.json, and pictures beside it.

    Running text: loss, perplexity, accuracy and bits per byte. Sources and targets: also the share of targets that are made exactly, and some that are not.
    Classes: also precision, recall and F1 of each, and the confusion as a picture.

    Args:
        run: a run's folder, such as runs/char_lm.
        stride: tokens from one window over a running text to the next: max_length is what training reports, 1 the most exact; half of max_length unless given.
        batch: examples at a time; 8 times the training's, as in training, unless given.
        limit: examples at most, from the first on.
        out: a JSON file for the results; evaluation.json in the run's folder unless given.
    """
    trained = load_trained(Path(run))
    how = Evaluation(8 * trained.experiment.run.batch if batch is None else batch, limit=limit, stride=stride)
    found = evaluate(trained.experiment.objective, trained, how)
    path = Path(out) if out else Path(run) / "evaluation.json"
    write_whole(path, json.dumps({"command": " ".join(sys.argv), "data": trained.data.digest, **found.numbers}, indent=2) + "\n")
    for name, draw in found.pictures.items():
        draw(path.with_name(name))
    console = rich.console.Console(file=sys.stdout, markup=False, highlight=False, emoji=False, soft_wrap=True)
    console.print(_table(found.numbers))
    for part in found.shown:
        console.print(part)
    print(", ".join(map(str, [path, *(path.with_name(name) for name in found.pictures)])))


def _table(numbers: dict[str, Any]) -> rich.table.Table:
    table = rich.table.Table.grid(padding=(0, 2))
    for name, value in numbers.items():
        if isinstance(value, (int, float)):
            table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else f"{value:.4f}", UNITS.get(name, ""))
    return table


if __name__ == "__main__":
    run_script(main, prog="evaluate.py")
