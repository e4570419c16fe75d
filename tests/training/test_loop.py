"""Whole runs of a tiny experiment: what they leave, what their result depends on, and what they refuse."""

import functools
import json
import math
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

from transformer_jax.config import from_json
from transformer_jax.data import batches
from transformer_jax.precision import Precision
from transformer_jax.tokenize import Bytes, load
from transformer_jax.training import AdamW, CheckpointError, Constant, Experiment, RunError, TrainState, init_state, load_run, train
from transformer_jax.training.checkpoint import Checkpoints
from transformer_jax.training.files import MetricsFile, free_folder, write_whole
from transformer_jax.training.loop import streams

pytestmark = pytest.mark.usefixtures("compiled_once")
Make = Callable[..., Experiment]


@pytest.fixture(scope="module")
def finished(experiment: Make, tmp_path_factory: pytest.TempPathFactory, compiled_once: None) -> Path:
    return train(experiment(tmp_path_factory.mktemp("runs") / "tiny"), command=["train.py", "tiny.py"])


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_folder_holds_all_that_a_run_leaves_and_nothing_else(finished: Path) -> None:
    names = {"config.json", "tokenizer.json", "run.json", "metrics.jsonl", "loss.png", "sample.txt", "checkpoints"}
    assert {path.name for path in finished.iterdir()} == names
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {"24", "30"}


def test_the_config_is_complete_and_the_vocabulary_the_datas(finished: Path, experiment: Make) -> None:
    config = from_json((finished / "config.json").read_text(), Experiment)
    vocabulary = load(finished / "tokenizer.json")
    asked = experiment(finished)
    assert config == asked.replace(model=asked.model.replace(vocab_size=vocabulary.vocab_size))
    assert vocabulary == asked.data.prepare(11).vocabulary


def test_the_note_says_versions_device_seed_command_and_commit(finished: Path) -> None:
    note = json.loads((finished / "run.json").read_text())
    assert note["seed"] == 3 and note["command"] == "train.py tiny.py"
    assert note["versions"]["jax"] == jax.__version__ and note["python"] == platform.python_version()
    assert jax.devices()[0].device_kind in note["device"]
    assert note["commit"] is None or re.fullmatch(r"[0-9a-f]{40}\+?", note["commit"])
    assert note["steps"] == 30 and note["held_out_loss"] == rows(finished)[-1]["held_out_loss"] and note["seconds"] > 0


def test_each_step_has_one_line_of_finite_numbers(finished: Path, experiment: Make) -> None:
    lines = rows(finished)
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert [line["step"] for line in lines if "held_out_loss" in line] == [10, 20, 30]
    rate = jax.vmap(experiment().schedule.make(0.02, 30))(jnp.arange(30))
    np.testing.assert_allclose([line["learning_rate"] for line in lines], rate, rtol=1e-5)
    assert lines[0]["loss"] == pytest.approx(math.log(29), abs=0.3) and lines[-1]["loss"] < lines[0]["loss"] - 0.3


def test_the_held_out_loss_is_the_mean_over_every_held_out_token(finished: Path, experiment: Make) -> None:
    held_out = experiment().data.prepare(11).held_out
    assert len(held_out) > 40 and len(held_out) % 40  # so that the last batch is not full
    examples = np.stack([held_out[n]["tokens"] for n in range(len(held_out))])
    model, variables, _ = load_run(finished)
    log_p = jax.nn.log_softmax(jax.jit(model.apply)(variables, examples[:, :-1]))
    nll = -np.take_along_axis(np.asarray(log_p), examples[:, 1:, None], -1)
    assert rows(finished)[-1]["held_out_loss"] == pytest.approx(nll.mean(), rel=1e-5)


def test_the_sample_continues_the_prompt_and_the_picture_opens(finished: Path) -> None:
    assert (finished / "sample.txt").read_text().startswith("to")
    picture = matplotlib.image.imread(finished / "loss.png")
    assert picture.shape[:2] == (504, 840) and picture[..., :3].std() > 0.05


def test_a_second_run_writes_beside_the_first_and_ends_in_the_same_bits(finished: Path, experiment: Make, saved: Callable[..., Any]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    again = train(experiment(finished))
    assert again == finished.with_name("tiny-2")
    assert from_json((again / "config.json").read_text(), Experiment).run.folder == str(again)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    chex.assert_trees_all_equal(saved(again), saved(finished))
    assert rows(again) == rows(finished)
    assert (again / "sample.txt").read_text() == (finished / "sample.txt").read_text()


def test_its_own_config_file_trains_the_same_parameters(finished: Path, saved: Callable[..., Any], tmp_path: Path) -> None:
    config = from_json((finished / "config.json").read_text(), Experiment)
    again = train(config.replace(run=config.run.replace(folder=str(tmp_path / "again"))))
    chex.assert_trees_all_equal(saved(again), saved(finished))


def test_another_seed_trains_others(finished: Path, experiment: Make, saved: Callable[..., Any], tmp_path: Path) -> None:
    other = train(experiment(tmp_path / "other", seed=4))
    assert all(a["loss"] != b["loss"] for a, b in zip(rows(other), rows(finished)))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"steps_per_call": 1}, {"steps_per_call": 99, "evaluate_every": 10, "checkpoint_every": 20}], ids=str)
def test_how_often_there_is_news_changes_no_bit(
    finished: Path, experiment: Make, saved: Callable[..., Any], tmp_path: Path, changes: dict[str, int]
) -> None:
    other = train(experiment(tmp_path / "other", **changes))
    chex.assert_trees_all_equal(saved(other), saved(finished))
    assert rows(other) == rows(finished)


def test_the_first_step_sees_the_first_batch_with_the_parameters_of_the_seed(finished: Path, experiment: Make) -> None:
    batch = next(batches(experiment().data.prepare(11).train, batch=5, seed=3))["tokens"]
    config = from_json((finished / "config.json").read_text(), Experiment)
    model = config.model.make()
    make = functools.partial(config.optimizer.make, config.schedule.make(0.02, 30))
    params = init_state(model, make, streams(3)["init"], jnp.asarray(batch[:1, :-1])).params
    log_p = np.asarray(jax.nn.log_softmax(jax.jit(model.apply)({"params": params}, batch[:, :-1])))
    assert rows(finished)[0]["loss"] == pytest.approx(-np.take_along_axis(log_p, batch[:, 1:, None], -1).mean(), rel=1e-5)


def test_the_position_in_the_data_is_that_of_the_batches_seen(finished: Path, experiment: Make, saved: Callable[..., Any]) -> None:
    iterator = batches(experiment().data.prepare(11).train, batch=5, seed=3)
    for _ in range(30):
        next(iterator)
    assert saved(finished)[1] == iterator.get_state()


def test_parts_of_a_batch_train_as_the_whole(finished: Path, experiment: Make, tmp_path: Path) -> None:
    parts = train(experiment(tmp_path / "parts", accumulate=5))
    np.testing.assert_allclose([line["loss"] for line in rows(parts)], [line["loss"] for line in rows(finished)], rtol=1e-3)
    assert rows(parts) != rows(finished)


@pytest.mark.slow
def test_bfloat16_compute_trains_about_as_well(finished: Path, experiment: Make, tmp_path: Path) -> None:
    half = train(experiment(tmp_path / "half", sample_tokens=1, precision=Precision(compute="bfloat16")))
    assert rows(half)[-1]["held_out_loss"] == pytest.approx(rows(finished)[-1]["held_out_loss"], abs=0.02)
    assert rows(half)[-1]["held_out_loss"] != rows(finished)[-1]["held_out_loss"]


def test_a_finished_run_that_is_resumed_stays_as_it_is(
    finished: Path, experiment: Make, saved: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("config.json", "tokenizer.json", "metrics.jsonl", "sample.txt")
    before, state = [(finished / name).read_bytes() for name in names], saved(finished)
    assert train(experiment(finished), resume=True) == finished
    assert "step 10/30" not in capsys.readouterr().out
    assert [(finished / name).read_bytes() for name in names] == before
    chex.assert_trees_all_equal(saved(finished), state)


def test_resuming_what_was_never_started_starts_it(finished: Path, experiment: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train(experiment(tmp_path / "new"), resume=True)
    assert folder == tmp_path / "new" and rows(folder) == rows(finished)
    assert "new: nothing to resume yet, starting from the beginning" in capsys.readouterr().out


def test_resuming_with_another_config_is_refused_and_names_each_field(finished: Path, experiment: Make) -> None:
    before = (finished / "config.json").read_bytes()
    other = experiment(finished, batch=7).replace(optimizer=AdamW(0.05))
    message = r"--resume: expected the config that .*tiny was started with, received one with .*optimizer\.learning_rate: 0\.02 -> 0\.05"
    with pytest.raises(RunError, match=message) as raised:
        train(other, resume=True)
    assert "run.batch: 5 -> 7" in str(raised.value) and str(raised.value).endswith("or from its parameters by --run.start")
    assert (finished / "config.json").read_bytes() == before


def without_norms(experiment: Experiment, rate: float, **run: Any) -> Experiment:
    """Its activations go with its parameters, and overflow when they do."""
    groups = tuple(group.replace(sublayers=tuple(type(s)(s.layer) for s in group.sublayers)) for group in experiment.model.stack.groups)
    model = experiment.model.replace(stack=experiment.model.stack.replace(groups=groups))
    return experiment.replace(model=model, optimizer=AdamW(rate, clip_norm=0.0), schedule=Constant(), run=experiment.run.replace(**run))


def test_a_loss_that_turns_nan_ends_the_run_and_keeps_the_last_good_checkpoint(experiment: Make, tmp_path: Path, saved: Callable[..., Any]) -> None:
    """Every step is saved and every tenth evaluated: the parameters grow until a loss overflows."""
    diverging = without_norms(experiment(tmp_path / "nan"), 300.0, checkpoint_every=1, steps_per_call=1)
    message = r"^step \d+: expected finite numbers, received loss .*; the checkpoint of step \d+ is the last good one; try a lower"
    with pytest.raises(RunError, match=message) as raised:
        train(diverging)
    step, good = map(int, re.findall(r"step (\d+)", str(raised.value)))
    lines = rows(tmp_path / "nan")
    assert good == step - 1 and [line["step"] for line in lines] == list(range(1, step))
    assert all(math.isfinite(value) for line in lines for value in line.values())
    chex.assert_tree_all_finite(saved(tmp_path / "nan")[0]["params"])
    assert not (tmp_path / "nan" / "sample.txt").exists()


@pytest.mark.parametrize(
    ("rate", "changes", "message"),
    [
        (1e20, {"evaluate_every": 1}, "step 1: expected a finite loss, received a held-out loss of (nan|inf); there is no checkpoint yet; try a lower"),
        (1.0, {"precision": Precision("float16")}, "step 1: expected finite parameters, received some that are not; there is no checkpoint yet; try a lower"),
    ],
    ids=["held out", "parameters"],
)
def test_what_the_step_itself_does_not_show_is_found_before_it_is_saved(
    experiment: Make, tmp_path: Path, rate: float, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RunError, match=message):
        train(without_norms(experiment(tmp_path / "nan"), rate, checkpoint_every=1, **changes))
    assert [line["step"] for line in rows(tmp_path / "nan")] == [1] and "held_out_loss" not in rows(tmp_path / "nan")[0]
    assert not any((tmp_path / "nan" / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.replace(data=e.data.replace(files=("no.txt",))), "received 'no.txt', which does not exist"),
        (lambda e: e.replace(model=e.model.replace(max_length=600)), r"expected at least 601 tokens \(context \+ 1\) in either part"),
        (lambda e: e.replace(model=e.model.replace(vocab_size=7)), r"model\.vocab_size: expected at least the data's \d+, received 7; leave it None"),
        (lambda e: e.replace(run=e.run.replace(backend="fast")), "backend: expected one of .*blockwise, reference.*received 'fast'"),
        (lambda e: e.replace(run=e.run.replace(precision=Precision(compute="float64"))), r"run\.precision: .*received float64, .*JAX_ENABLE_X64=1"),
    ],
    ids=["file", "length", "vocabulary", "backend", "float64"],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    experiment: Make, tmp_path: Path, change: Callable[[Experiment], Experiment], message: str
) -> None:
    with jax.enable_x64(False), pytest.raises((ValueError, OSError, RunError), match=message):
        train(change(experiment(tmp_path / "new")))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, r"Run\.steps: expected more than 0, received 0"),
        ({"accumulate": 2}, r"Run\.accumulate: expected a divisor of batch = 5, received 2"),
        ({"folder": ""}, r"Run\.folder: expected the name of a folder, received ''"),
        ({"seed": 2**32}, r"Run\.seed: expected an integer from 0 to 2\*\*32 - 1, received 4294967296"),
        ({"prompt": ""}, r"Run\.prompt: expected a text of at least one character, received ''"),
        ({"sample_tokens": 0}, r"Run\.sample_tokens: expected more than 0, received 0"),
        ({"temperature": -1.0}, r"Run\.temperature: expected at least 0, received -1\.0"),
        ({"unroll": -1}, r"Run\.unroll: expected at least 0, received -1"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_a_run_refuses_what_it_could_not_finish(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Experiment.__dataclass_fields__["run"].type(**{"folder": "runs/x", "steps": 1, "batch": 5, **change})


@pytest.mark.slow
def test_a_larger_vocabulary_than_the_datas_is_taken_and_what_is_no_text_left_out(experiment: Make, tmp_path: Path) -> None:
    bytes_ = experiment(tmp_path / "bytes", steps=1)
    folder = train(bytes_.replace(data=bytes_.data.replace(tokenizer=Bytes()), model=bytes_.model.replace(vocab_size=600)))
    assert load_run(folder)[1]["params"]["embedding"]["embedding"].shape == (600, 16)
    assert 2 < len((folder / "sample.txt").read_text()) < 19


def test_looking_at_a_run_makes_nothing_and_leaves_what_is_being_written(finished: Path, tmp_path: Path) -> None:
    half_written = finished / "checkpoints" / "36.orbax-checkpoint-tmp"
    half_written.mkdir()
    try:
        model, variables, vocabulary = load_run(finished)
        assert half_written.exists()
    finally:
        half_written.rmdir()
    assert not model.stacked and "layers_0" in variables["params"]["stack"]["groups_0"]
    assert vocabulary == load(finished / "tokenizer.json")
    (tmp_path / "config.json").write_bytes((finished / "config.json").read_bytes())
    with pytest.raises(RunError, match="there is no checkpoint yet; go on training with --resume"):
        load_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"config\.json: not JSON"),
        ('{"type": "elsewhere:Model"}', r"config\.json: .*import the module that defines it first \(scripts: --import FILE\|MODULE\)"),
        (None, r"expected the folder of a run, received one without config\.json"),
    ],
)
def test_a_folder_that_is_no_run_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(RunError, match=message):
        load_run(tmp_path)
    with pytest.raises(RunError, match="nowhere: there is no such folder"):
        load_run(tmp_path / "nowhere")


def test_a_checkpoint_of_another_model_is_said_to_be_unreadable(finished: Path, experiment: Make) -> None:
    checkpoints = Checkpoints(finished / "checkpoints", read_only=True)
    message = r"expected a whole checkpoint in .*30, received one that cannot be read .*; " r"unless the config was changed since, remove .*30 to go on"
    with pytest.raises(CheckpointError, match=message):
        checkpoints.restore({"params": {"embedding": jnp.zeros((2, 2))}})  # type: ignore[arg-type]
    checkpoints.close()


def test_parameters_are_made_from_the_key_alone_and_in_the_dtype_asked_for(experiment: Make) -> None:
    def init(seed: int, dtype: Any = "float32") -> TrainState:
        model = experiment().model.replace(vocab_size=7).make(precision=Precision(dtype))
        make = functools.partial(AdamW().make, Constant().make(1.0, 1))
        return init_state(model, make, jax.random.key(seed), jnp.zeros((1, 11), jnp.int32))

    first, again, other = (init(seed) for seed in (3, 3, 4))
    chex.assert_trees_all_equal(first, again)
    assert not np.array_equal(first.params["embedding"]["embedding"], other.params["embedding"]["embedding"])
    assert first.step.dtype == jnp.int32 and all(not leaf.any() for leaf in jax.tree.leaves(first.opt_state))
    assert {a.dtype.name for a in jax.tree.leaves(init(3, "bfloat16").params)} == {"bfloat16"}


def test_every_stream_and_every_seed_has_keys_of_its_own() -> None:
    keys = [tuple(np.asarray(jax.random.key_data(key))) for seed in (0, 1, 2**32 - 1) for key in streams(seed).values()]
    assert len(set(keys)) == 12


def test_metrics_after_the_checkpoint_are_dropped_and_a_line_half_written_with_them(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": n, "loss": 1 / n}) + "\n" for n in range(1, 9)) + '{"step": 9, "lo')
    metrics = MetricsFile(path, last_step=5)
    metrics.append([{"step": 6, "loss": 0.5}])
    assert [line["step"] for line in rows(tmp_path)] == [line["step"] for line in metrics.rows] == [1, 2, 3, 4, 5, 6]
    assert rows(tmp_path)[4] == {"step": 5, "loss": 1 / 5}
    assert MetricsFile(path, last_step=0).rows == [] and path.read_text() == ""


def test_a_new_run_takes_the_first_number_that_is_free(tmp_path: Path) -> None:
    taken = str(tmp_path / "run")
    names = []
    for _ in range(3):
        names.append(free_folder(taken).name)
        free_folder(taken).mkdir()
    assert names == ["run", "run-2", "run-3"]
    assert free_folder(str(tmp_path / "run-2")).name == "run-4"


def test_a_file_is_replaced_whole_or_left_as_it_was(tmp_path: Path) -> None:
    write_whole(tmp_path / "deep" / "a.txt", "é")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "deep" / "a.txt", "half \ud800")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.txt"] and (tmp_path / "deep" / "a.txt").read_text() == "é"


def test_resuming_on_other_data_from_the_same_place_is_refused(finished: Path, experiment: Make) -> None:
    note = json.loads((finished / "run.json").read_text())
    (finished / "run.json").write_text(json.dumps({**note, "data": "another"}))
    try:
        with pytest.raises(RunError, match=r"--resume: expected the data that .* was started with, received other data from the same place"):
            train(experiment(finished), resume=True)
    finally:
        (finished / "run.json").write_text(json.dumps(note))


def test_resuming_with_lines_of_the_metrics_lost_is_refused(finished: Path, experiment: Make) -> None:
    before = (finished / "metrics.jsonl").read_text()
    (finished / "metrics.jsonl").write_text("{}\n")
    try:
        with pytest.raises(RunError, match=r"metrics.jsonl: expected a line for each of the 30 steps before the checkpoint, received 0 that can be read"):
            train(experiment(finished), resume=True)
    finally:
        (finished / "metrics.jsonl").write_text(before)
