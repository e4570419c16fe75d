"""What a trained model is worth, by the objective that it was trained for.

An objective of one's own gets the loss and accuracy of its sums. One that wants more registers a function, in the module that defines it:

    @evaluate.register
    def _(objective: Mine, trained: Trained, how: Evaluation) -> Findings:
        return Findings({"loss": ...})
"""

import functools
import json
import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import grain
import jax
import numpy as np
import rich.table

from transformer_jax.config import Config
from transformer_jax.data import Prepared
from transformer_jax.evaluation.classes import confusion, macro_f1, scores_of
from transformer_jax.evaluation.pictures import draw_confusion
from transformer_jax.evaluation.text import sliding_loss, utf8_length
from transformer_jax.layers.base import check_positive
from transformer_jax.training import Experiment, NextToken, Objective, RunError, SequenceLabels, SourceToTarget, TokenLabels, load_run
from transformer_jax.training.held_out import Sums, added_up, in_order
from transformer_jax.training.loop import read_experiment
from transformer_jax.training.samples import text_of, translated

WRONG_SHOWN = 8


class Trained(NamedTuple):
    """A run, to be looked at.

    Attributes:
        experiment: of which it was.
        model: unstacked.
        variables: `{"params": ...}`.
        data: with what the run held out.
    """

    experiment: Experiment
    model: Any
    variables: Any
    data: Prepared


@dataclass(frozen=True)
class Evaluation(Config):
    """How a model is evaluated.

    Attributes:
        batch: examples at a time. What is random in an objective depends on it; with 8 times the training's, the loss is the one that training reports.
        limit: examples at most, from the first on.
        stride: of the window that predicts running text, see `sliding_loss`; half the model's max_length unless given. For `NextToken` alone.
    """

    batch: int
    _: KW_ONLY
    limit: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "batch", "limit", "stride")


@dataclass(frozen=True)
class Findings:
    """What an evaluation found.

    Attributes:
        numbers: by name, all that JSON can hold.
        shown: what to print after those that are single numbers: texts, or tables of rich.
        pictures: by file name, functions that draw a PNG at a path.
    """

    numbers: dict[str, Any]
    shown: tuple[Any, ...] = ()
    pictures: dict[str, Callable[[Path], None]] = field(default_factory=dict)


def load_trained(folder: Path) -> Trained:
    """A run's model and data.

    Raises:
        RunError, CheckpointError: there is no model, see `load_run`, or the data is not what it was. ValueError, OSError: the data cannot be read any more.
    """
    model, variables, _ = load_run(folder)
    experiment = read_experiment(folder / "config.json")
    data = experiment.data.prepare(experiment.length)
    if json.loads((folder / "run.json").read_text(encoding="utf-8"))["data"] != data.digest:
        way_out = "put back the files as they were (and use the same Python for its own texts), or train anew"
        raise RunError(f"{folder}: expected the data that it was trained on, received other data from the same place, of which it may have seen any; {way_out}")
    return Trained(experiment, model, variables, data)


@functools.singledispatch
def evaluate(objective: Objective, trained: Trained, how: Evaluation) -> Findings:
    """Evaluates a trained model on what its data holds out, in the way of its objective's class.

    Raises:
        ValueError: options that do not fit, or nothing to count.
    """
    return Findings(_numbers(_sums(objective, trained, how)))


@evaluate.register
def _next_token(objective: NextToken, trained: Trained, how: Evaluation) -> Findings:
    model, variables, data = trained.model, trained.variables, trained.data
    examples, length = _examples(trained, how), trained.experiment.length
    if (tokens := getattr(data.held_out, "tokens", None)) is None:
        sums = _sums(objective, trained, how)
        tasks = (objective.task(model.config, batch, jax.random.key(0)) for batch in in_order(examples, how.batch))
        predicted = np.concatenate([np.ravel(task.labels) for task in tasks])
        about: dict[str, Any] = {}
    else:
        tokens, about = tokens[: len(examples) * length + 1], {"stride": how.stride or max(1, length // 2)}  # what training looks at, and no more
        sums, predicted = sliding_loss(model, variables, tokens, batch=how.batch, length=length, **about), tokens[1:]
    size = utf8_length(data.vocabulary, predicted.tolist())
    more = {"perplexity": math.exp(sums.loss), "bits_per_byte": sums.nll / math.log(2) / size}
    return Findings({**_numbers(sums), **more, **about})


@evaluate.register
def _source_to_target(objective: SourceToTarget, trained: Trained, how: Evaluation) -> Findings:
    examples, text = _examples(trained, how), functools.partial(text_of, trained.data.vocabulary)
    config, length = trained.model.config, trained.experiment.length
    ends = {"begin": objective.begin(config), "end": objective.end(config)}
    rows: list[Any] = []
    for batch in in_order(examples, how.batch):
        made = translated(trained.model, trained.variables, batch["source"], **ends, length=length)
        rows += zip(batch["source"], made, batch["target"], exact_matches(made, batch["target"]))
    rows = rows[: len(examples)]
    wrong = [tuple(map(text, texts)) for *texts, exact in rows if not exact]
    numbers = _numbers(_sums(objective, trained, how)) | {"exact_match": 1 - len(wrong) / len(rows)}
    first = [dict(zip(("source", "made", "right"), texts)) for texts in wrong[:WRONG_SHOWN]]
    return Findings({**numbers, "wrong": first}, tuple("{source} -> {made} (right: {right})".format(**each) for each in first))


def exact_matches(made: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Whether sequences `[n, A]` and `[n, B]`, which end in negative padding of any length, are the same: bool `[n]`."""
    width = max(made.shape[1], right.shape[1])
    made, right = (np.pad(np.maximum(a, -1), ((0, 0), (0, width - a.shape[1])), constant_values=-1) for a in (made, right))
    return cast(np.ndarray, (made == right).all(1))


@evaluate.register(SequenceLabels)
@evaluate.register(TokenLabels)
def _labels(objective: SequenceLabels | TokenLabels, trained: Trained, how: Evaluation) -> Findings:
    model, classes = trained.model, trained.model.config.head.num_labels

    @jax.jit
    def made_and_right(variables: Any, batch: Any) -> Any:
        inputs, labels, options = objective.task(model.config, batch, jax.random.key(0))
        return model.apply(variables, *inputs, **options).argmax(-1), labels

    sums = _sums(objective, trained, how)
    pairs = (made_and_right(trained.variables, batch) for batch in in_order(_examples(trained, how), how.batch))
    counts = np.sum([confusion(np.asarray(made), np.asarray(right), classes) for made, right in pairs], 0)
    known = trained.data.labels
    names = [*known, *map(str, range(len(known), classes))]
    scores = scores_of(counts)
    numbers = {
        **_numbers(sums),
        "macro_f1": macro_f1(counts),
        "always_the_most_frequent": float(scores.support.max() / scores.support.sum()),
        "classes": {name: {score: a[n].item() for score, a in scores._asdict().items()} for n, name in enumerate(names)},
        "confusion": counts.tolist(),
    }
    return Findings(numbers, (_table(numbers["classes"]),), {"confusion.png": functools.partial(draw_confusion, counts, names)})


def _table(classes: dict[str, dict[str, float]]) -> rich.table.Table:
    table = rich.table.Table("class")
    for score in next(iter(classes.values())):
        table.add_column(score, justify="right")
    for name, scores in classes.items():
        table.add_row(name, *(f"{v:,}" if isinstance(v, int) else f"{v:.4f}" for v in scores.values()))
    return table


def _examples(trained: Trained, how: Evaluation) -> grain.MapDataset:
    return trained.data.held_out[: how.limit]


def _sums(objective: Objective, trained: Trained, how: Evaluation) -> Sums:
    if how.stride is not None:
        raise ValueError(f"stride: expected none where examples are taken as they are, not laid over a running text, received {how.stride}; leave it out")
    sums = jax.jit(lambda variables, batch: objective(trained.model, variables, batch))
    return added_up(sums(trained.variables, batch) for batch in in_order(_examples(trained, how), how.batch))


def _numbers(sums: Sums) -> dict[str, Any]:
    if not sums.weight:
        raise ValueError("limit: expected at least one label among the examples, received none; take more of them")
    if not math.isfinite(sums.loss):
        raise ValueError(f"expected a finite loss, received {sums.loss}: an example has a token or label that the model does not know, or the model is broken")
    return {"labels": int(sums.weight), "loss": sums.loss, "accuracy": sums.accuracy}
