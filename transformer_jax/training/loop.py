"""A whole run: from an experiment to a folder with a trained model."""

import functools
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from transformer_jax.checkpoints import from_pretrained, is_published, published_vocabulary
from transformer_jax.config import differences, from_json, to_json
from transformer_jax.data import Prepared, batches
from transformer_jax.models import unstacked
from transformer_jax.precision import Precision
from transformer_jax.tokenize import Vocabulary
from transformer_jax.tokenize import load as load_vocabulary
from transformer_jax.training.checkpoint import CheckpointError, Checkpoints
from transformer_jax.training.experiment import Experiment
from transformer_jax.training.files import MetricsFile, free_folder, note, write_whole
from transformer_jax.training.held_out import added_up, in_order
from transformer_jax.training.objective import Asked
from transformer_jax.training.plot import plot_loss
from transformer_jax.training.progress import Progress
from transformer_jax.training.step import TrainState, init_state, several_steps, train_step


class RunError(Exception):
    """A run that cannot start or go on; the message says why, and what to do."""


STREAMS = ("init", "dropout", "data", "sample")


def streams(seed: int) -> dict[str, jax.Array]:
    """A key for each kind of random choice. A step's key is fold_in(stream, step)."""
    return {name: jax.random.fold_in(jax.random.key(seed), n) for n, name in enumerate(STREAMS)}


def train(experiment: Experiment, *, resume: bool = False, command: list[str] | None = None) -> Path:
    """Trains, and writes config.json, tokenizer.json, run.json, metrics.jsonl, checkpoints/, sample.txt and loss.png; the classes' names in labels.json.

    Args:
        experiment: all that the result depends on. The same one gives the same parameters again on the same machine.
        resume: go on from the last checkpoint in `run.folder`, as though nothing had happened; otherwise a folder that exists gets a number after its name.
        command: for the note; this process's own unless given.

    Returns:
        The folder.

    Raises:
        RunError, CheckpointError: see there. The last good checkpoint stays.
        ValueError, OSError: data that cannot be used; nothing is written then.
    """
    started = time.time()
    precision = experiment.run.precision
    if "float64" in (precision.params, precision.compute) and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise RunError("run.precision: expected float32, bfloat16 or float16, received float64, which jax has where JAX_ENABLE_X64=1 is in the environment")
    data = experiment.data.prepare(experiment.length)
    extra = 0 if _starts_published(experiment) else experiment.objective.extra_tokens
    experiment = experiment.replace(model=experiment.model.filled_in(data.vocabulary.vocab_size + extra, len(data.labels)))
    folder = Path(experiment.run.folder) if resume else free_folder(experiment.run.folder)
    experiment = experiment.replace(run=experiment.run.replace(folder=str(folder)))
    if resume:
        _check_same(experiment, folder, data.digest)
    trainer = _Trainer(experiment, data)
    state = trainer.initial_state()  # before anything is written: what cannot work refuses here
    write_whole(folder / "config.json", to_json(experiment))
    data.vocabulary.save(folder / "tokenizer.json")
    if data.labels:
        write_whole(folder / "labels.json", json.dumps(data.labels, indent=0) + "\n")
    about = {**note(experiment.run.seed, command or sys.argv), "data": data.digest}
    write_whole(folder / "run.json", json.dumps(about, indent=2) + "\n")
    checkpoints = Checkpoints(folder / "checkpoints", experiment.run.keep)
    try:
        state = trainer.run(state, folder, checkpoints)
    finally:
        checkpoints.close()
    sample = trainer.sample(state)
    write_whole(folder / "sample.txt", sample)
    print(f"\n{sample}\n")
    rows = MetricsFile(folder / "metrics.jsonl", experiment.run.steps).rows
    plot_loss(rows, folder / "loss.png")
    reached = {name: value for name, value in rows[-1].items() if name.startswith("held_out")}
    about |= {"steps": int(state.step), **reached, "seconds": round(time.time() - started, 1)}
    write_whole(folder / "run.json", json.dumps(about, indent=2) + "\n")
    what = {"held_out_loss": "loss {:.4f} nats", "held_out_accuracy": "accuracy {:.2%}", "held_out_bits_per_byte": "{:.4f} bits per byte"}
    said = ", ".join(what[name].format(value) for name, value in reached.items() if name in what)
    print(f"{folder}: held out: {said}; {about['seconds']:.0f} s")
    return folder


def _check_same(experiment: Experiment, folder: Path, digest: str) -> None:
    path = folder / "config.json"
    if not path.exists():
        print(f"{folder}: nothing to resume yet, starting from the beginning")
        return
    note_before = folder / "run.json"
    if note_before.exists() and json.loads(note_before.read_text(encoding="utf-8")).get("data") != digest:
        raise RunError(f"--resume: expected the data that {folder} was started with, received other data from the same place; leave --resume out to start anew")
    if changed := differences(before := read_experiment(path), experiment):
        way_out = "leave --resume out to start anew, or from its parameters by --run.start"
        if before.run.start != experiment.run.start:  # with which a model goes, and all that differs in it
            changed = [line for line in changed if line.startswith("run.start:")]
            way_out = f"give the --init or --run.start of then, or go on by train.py {path} --resume"
        what = "; ".join(changed)
        raise RunError(f"--resume: expected the config that {folder} was started with, received one with {what}; {way_out}")


def load_run(folder: Path) -> tuple[Any, Any, Vocabulary]:
    """A trained model, unstacked for decoding, its variables and its vocabulary.

    Raises:
        RunError: no run is there, or it has no checkpoint yet. CheckpointError: the last one cannot be read.
    """
    params, vocabulary = _trained(folder)
    experiment = read_experiment(folder / "config.json")
    model = experiment.model.make(precision=experiment.run.precision, backend=experiment.run.backend)
    return *unstacked(model, {"params": params}), vocabulary


def _trained(folder: Path) -> tuple[Any, Vocabulary]:
    """The last parameters of a run, and its vocabulary; raises as `load_run` does."""
    path = folder / "config.json"
    if is_published(folder):
        way_out = f"scripts/train.py --init {folder} makes a run that goes on from it"
        raise RunError(f"{folder}: expected the folder of a run, received that of a published model; {way_out}")
    if not path.exists():
        raise RunError(f"{folder}: expected the folder of a run, received one without config.json" if folder.exists() else f"{folder}: there is no such folder")
    experiment = read_experiment(path)
    model = experiment.model.make(precision=experiment.run.precision)
    optimizer = functools.partial(experiment.optimizer.make, experiment.schedule.make(experiment.optimizer.learning_rate, experiment.run.steps))
    like = jax.eval_shape(lambda: init_state(model, optimizer, jax.random.key(0), *experiment.model.example()))
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    try:
        found = checkpoints.restore(like)
    finally:
        checkpoints.close()
    if found is None:
        raise RunError(f"{folder}: there is no checkpoint yet; go on training with --resume")
    vocabulary = load_vocabulary(folder / "tokenizer.json")
    if vocabulary.vocab_size > (experiment.model.vocab_size or 0):
        raise RunError(f"{folder}/tokenizer.json: expected a vocabulary of at most {experiment.model.vocab_size}, received one of {vocabulary.vocab_size}")
    return found[0].params, vocabulary


def _starts_published(experiment: Experiment) -> bool:
    """Whether a run starts from a published model."""
    return bool(experiment.run.start) and is_published(experiment.run.start)


def _published(folder: Path, precision: Precision) -> tuple[Any, Vocabulary]:
    """The parameters of a published model, and its vocabulary."""
    model, variables = from_pretrained(folder, precision=precision)
    return variables["params"], published_vocabulary(folder, model.config.vocab_size)


def started_from(params: Any, before: Any) -> tuple[Any, dict[str, Any]]:
    """`params` with those of `before` that have the same path and shape, and by path those that stay as they are."""
    known = dict(jax.tree_util.tree_leaves_with_path(before))
    fresh: dict[str, Any] = {}

    def one(path: Any, mine: Any) -> Any:
        if path in known and known[path].shape == mine.shape:
            return known[path].astype(mine.dtype)
        fresh[jax.tree_util.keystr(path, simple=True, separator="/")] = mine
        return mine

    return jax.tree_util.tree_map_with_path(one, params), fresh


def read_experiment(path: Path) -> Experiment:
    """The experiment in a run's config.json.

    Raises:
        RunError: it cannot be read; the message names the file.
    """
    try:
        return from_json(path.read_text(encoding="utf-8"), Experiment)
    except (ValueError, TypeError) as error:
        raise RunError(f"{path}: {error}") from None


class _Trainer:
    """What a run needs beside its folder: model, compiled steps, data."""

    def __init__(self, experiment: Experiment, data: Prepared) -> None:
        run = experiment.run
        self.experiment, self.data, self.keys = experiment, data, streams(run.seed)
        self.fresh: dict[str, Any] = {}
        fields = {"precision": run.precision, "backend": run.backend, "unroll": run.unroll}
        self.model, training = experiment.model.make(**fields), experiment.model.make(**fields, training=True)
        self.rate = experiment.schedule.make(experiment.optimizer.learning_rate, run.steps)
        self.rates = jax.jit(jax.vmap(self.rate))
        self.optimizer = functools.partial(experiment.optimizer.make, self.rate)
        self.steps = several_steps(train_step(training, experiment.objective, self.optimizer, run.accumulate))
        self.evaluate_batch = jax.jit(lambda params, batch: experiment.objective(self.model, {"params": params}, batch))
        self.batches = batches(data.train, batch=run.batch, seed=run.seed)

    def initial_state(self) -> TrainState:
        state = init_state(self.model, self.optimizer, self.keys["init"], *self.experiment.model.example())
        if not (start := self.experiment.run.start):
            return state
        before, vocabulary = _published(Path(start), self.experiment.run.precision) if _starts_published(self.experiment) else _trained(Path(start))
        if vocabulary != self.data.vocabulary:
            way_out = "train both on the same texts, or give the data its tokenizer: FromFile"
            raise RunError(f"run.start: expected a run with the data's vocabulary, received {start}, which has another; {way_out}")
        params, self.fresh = started_from(state.params, before)
        new = sum(a.size for name, a in self.fresh.items())
        if 2 * new > sum(a.size for a in jax.tree.leaves(params)):
            name, first = next(iter(self.fresh.items()))
            raise RunError(
                f"run.start: expected a run of which most parameters fit, received {start}, which lacks {len(self.fresh)} of "
                f"{len(jax.tree.leaves(params))}, such as {name} {first.shape}; give both models the same sizes and layers"
            )
        return state.replace(params=params)

    def run(self, state: TrainState, folder: Path, checkpoints: Checkpoints) -> TrainState:
        run = self.experiment.run
        if restored := checkpoints.restore(state):
            state, position = restored
            self.batches.set_state(position)
        at = int(state.step)
        metrics = MetricsFile(folder / "metrics.jsonl", at)
        if len(metrics.rows) != at:
            raise RunError(f"{metrics.path}: expected a line for each of the {at} steps before the checkpoint, received {len(metrics.rows)} that can be read")
        model = self.experiment.model
        seen = sum(a.size for a in jax.eval_shape(lambda: model.example(run.batch, self.experiment.length)))
        with Progress(run.steps, at, tokens_per_step=seen) as progress:
            progress.line(self.data.summary)
            start = f", from {run.start}" if run.start else ""
            fresh = f" but for {', '.join(self.fresh)}" if self.fresh else ""
            progress.line(f"{sum(a.size for a in jax.tree.leaves(state.params)):,} parameters{start}{fresh}, {folder}")
            for count in self._calls(at):
                state, rows = self._call(state, at, count, metrics, checkpoints)
                at += count
                if at % run.evaluate_every == 0 or at == run.steps:
                    loss, accuracy = self.held_out(state.params)
                    if not math.isfinite(loss):
                        metrics.append(rows)
                        raise RunError(f"step {at}: expected a finite loss, received a held-out loss of {loss}; {_way_out(checkpoints)}")
                    rows[-1] |= {"held_out_loss": loss, "held_out_accuracy": accuracy}
                    if self.data.bytes_per_token:
                        rows[-1]["held_out_bits_per_byte"] = loss / math.log(2) / self.data.bytes_per_token
                metrics.append(rows)
                progress.update(rows)
                if at % run.checkpoint_every == 0 or at == run.steps:
                    if not all(np.isfinite(a).all() for a in jax.tree.leaves(jax.device_get(state.params))):  # its loss would show at the next step only
                        raise RunError(f"step {at}: expected finite parameters, received some that are not; {_way_out(checkpoints)}")
                    checkpoints.save(state, self.batches.get_state())
        return state

    def _calls(self, at: int) -> Iterator[int]:
        """How many steps each compiled call makes: `steps_per_call`, fewer where evaluating or saving falls in between."""
        run = self.experiment.run
        while at < run.steps:
            stops = [run.steps, *((at // every + 1) * every for every in (run.evaluate_every, run.checkpoint_every))]
            yield (count := min(run.steps_per_call, min(stops) - at))
            at += count

    def _call(self, state: TrainState, at: int, count: int, metrics: MetricsFile, checkpoints: Checkpoints) -> tuple[TrainState, list[dict[str, Any]]]:
        drawn = list(itertools.islice(self.batches, count))
        state, values = self.steps(state, jax.tree.map(lambda *a: np.stack(a), *drawn), self.keys["dropout"])
        columns = {name: np.asarray(a, np.float64) for name, a in values.items()}
        columns["learning_rate"] = np.asarray(self.rates(np.arange(at, at + count)), np.float64)
        rows: list[dict[str, Any]] = []
        for n in range(count):
            row = {"step": at + n + 1, **{name: float(a[n]) for name, a in columns.items()}}
            if not all(math.isfinite(v) for v in row.values()):
                metrics.append(rows)
                received = f"loss {row['loss']} and gradient norm {row['grad_norm']}"
                raise RunError(f"step {row['step']}: expected finite numbers, received {received}; {_way_out(checkpoints)}")
            rows.append(row)
        return state, rows

    def held_out(self, params: Any) -> tuple[float, float]:
        """Nats per label, and the share of labels that are the likeliest, over all that is held out."""
        held_out = in_order(self.data.held_out, self.experiment.run.batch * 8)
        sums = added_up(self.evaluate_batch(params, batch) for batch in held_out)
        return sums.loss, sums.accuracy

    def sample(self, state: TrainState) -> str:
        run = self.experiment.run
        asked = Asked(run.prompt, run.sample_tokens, run.temperature, jax.random.fold_in(self.keys["sample"], state.step))
        return self.experiment.objective.sample(*unstacked(self.model, {"params": state.params}), self.data, asked)


def _way_out(checkpoints: Checkpoints) -> str:
    good = f"the checkpoint of step {checkpoints.steps[-1]} is the last good one" if checkpoints.steps else "there is no checkpoint yet"
    return f"{good}; try a lower --optimizer.learning-rate or a longer warm-up"


__all__ = ["CheckpointError", "RunError", "load_run", "read_experiment", "streams", "train"]
