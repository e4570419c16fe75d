"""Training that goes on from a published model: what stays of the experiment, and that the first parameters are the folder's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import from_pretrained, unstacked
from transformer_jax.checkpoints import published_config
from transformer_jax.data import Dates, Labelled, Pairs, Text, TokenLabelled, batches
from transformer_jax.layers import Attention, Causal, Dense, Group, Mean, Residual, SequenceClassifier, Stack, TokenClassifier
from transformer_jax.models import DecoderOnlyConfig, EncoderDecoderConfig, EncoderOnlyConfig
from transformer_jax.tokenize import FromFile
from transformer_jax.training import (
    AdamW,
    CorruptedSpans,
    Experiment,
    MaskedTokens,
    NextToken,
    Run,
    SequenceLabels,
    SourceToTarget,
    TokenLabels,
    initialised,
    load_run,
    train,
)

OWN = {"d_model": 8, "max_length": 12}
Published = Callable[..., Path]


def language(text_file: str, **run: Any) -> Experiment:
    stack = Stack((Group(1, (Residual(Attention(2, mask=Causal())),)),))
    how = {"steps": 1, "batch": 3, "sample_tokens": 2, "prompt": "to", **run}
    return Experiment(DecoderOnlyConfig(None, stack=stack, **OWN), data=Text((text_file,)), optimizer=AdamW(1e-30), run=Run("unused", **how))


def encoder(data: Any, objective: Any, head: Any = None) -> Experiment:
    stack = Stack((Group(1, (Residual(Dense(5)),)),))
    model = EncoderOnlyConfig(None, stack=stack, **OWN, **({} if head is None else {"head": head}))
    return Experiment(model, data=data, objective=objective, run=Run("unused", steps=1, batch=2))


def translator(data: Any, objective: Any = SourceToTarget()) -> Experiment:
    stack = Stack((Group(1, (Residual(Dense(5)),)),))
    return Experiment(EncoderDecoderConfig(None, encoder=stack, decoder=stack, **OWN), data=data, objective=objective, run=Run("unused", steps=1, batch=2))


def test_the_model_the_tokenizer_and_the_parameters_are_the_folders_and_all_else_is_the_experiments(
    published: Published, tmp_path: Path, text_file: str
) -> None:
    folder = published(tmp_path / "llama", "llama")
    before = language(text_file, seed=5)
    after = initialised(before, folder)
    assert after.model == published_config(folder) and after.data.tokenizer == FromFile(str(folder / "tokenizer.json"))
    assert after.run == before.run.replace(start=str(folder), length=12)
    assert after == before.replace(model=after.model, data=before.data.replace(tokenizer=after.data.tokenizer), run=after.run)
    assert initialised(before, str(folder)) == after


@pytest.mark.parametrize(("asked", "own", "length"), [(None, 12, 12), (None, 900, 64), (7, 900, 7), (64, 900, 64)])
def test_examples_are_as_long_as_asked_for_or_as_both_models_can(
    published: Published, tmp_path: Path, text_file: str, asked: int | None, own: int, length: int
) -> None:
    before = language(text_file)
    before = before.replace(model=before.model.replace(max_length=own), run=before.run.replace(length=asked))
    after = initialised(before, published(tmp_path / "llama", "llama"))
    assert after.length == length and after.model.max_length == 64


def test_a_length_that_the_published_model_has_not_is_refused(published: Published, tmp_path: Path, text_file: str) -> None:
    before = language(text_file)
    before = before.replace(model=before.model.replace(max_length=900), run=before.run.replace(length=65))
    with pytest.raises(ValueError, match=r"Run\.length: expected at most the model's max_length = 64, received 65"):
        initialised(before, published(tmp_path / "llama", "llama"))


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_the_first_loss_is_that_of_the_folders_parameters(published: Published, tmp_path: Path, text_file: str, close: Any) -> None:
    """And the first step at a learning rate that changes none leaves every one of them as it is."""
    folder = published(tmp_path / "llama", "llama")
    experiment = initialised(language(text_file), folder)
    experiment = experiment.replace(run=experiment.run.replace(folder=str(tmp_path / "run")))
    made = train(experiment)
    model, variables = from_pretrained(folder)
    data = experiment.data.prepare(experiment.length)
    batch = jax.tree.map(jnp.asarray, next(batches(data.train, batch=3, seed=0)))
    sums = experiment.objective(model, variables, batch)
    (row,) = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
    close(np.float32(row["loss"]), np.float32(sums.total / sums.weight))
    _, after, vocabulary = load_run(made)
    jax.tree.map(np.testing.assert_array_equal, after, unstacked(model, variables)[1])
    assert vocabulary == data.vocabulary and (made / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


@pytest.mark.usefixtures("quick")
def test_a_head_for_something_else_is_new_and_all_below_it_the_folders(published: Published, tmp_path: Path) -> None:
    lines = [json.dumps({"text": text, "label": label}) for text, label in 9 * (("to be", "a"), ("the question", "b"), ("that is", "a"), ("or not", "b"))]
    lines += [json.dumps({"text": f"{word} to", "label": "ab"[n % 2]}) for n, word in enumerate(["to", "be", "or", "not", "the", "question", "that", "is"])]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    folder = published(tmp_path / "bert", "bert")
    head = SequenceClassifier(pool=Mean())  # with a dense layer of the shape of the folder's head's own, which is another
    experiment = initialised(encoder(Labelled((str(tmp_path / "lines.jsonl"),), held_out=0.3), SequenceLabels(), head), folder)
    assert experiment.model.head == head and experiment.model.replace(head=published_config(folder).head) == published_config(folder)
    data = experiment.data.prepare(experiment.length)
    for example in data.held_out:  # [CLS] and [SEP] around each text
        tokens = example["tokens"][example["tokens"] >= 0]
        assert tokens[0] == 2 and tokens[-1] == 3 and not np.isin(tokens[1:-1], (2, 3)).any()
    made = train(experiment.replace(run=experiment.run.replace(folder=str(tmp_path / "run")), optimizer=AdamW(1e-30)))
    _, after, _ = load_run(made)
    before = unstacked(*from_pretrained(folder))[1]
    assert after["params"]["head"]["kernel"].shape == (30, 2) and np.abs(after["params"]["head"]["kernel"]).max() > 0
    assert set(after["params"]["head"]) == {"kernel", "bias", "dense"} and set(before["params"]["head"]) == {"transform", "norm", "logits"}
    for name in set(after["params"]) - {"head"}:
        jax.tree.map(np.testing.assert_array_equal, after["params"][name], before["params"][name])


def test_a_pooler_does_not_stay_under_another_head(published: Published, tmp_path: Path) -> None:
    folder = published(tmp_path / "bert", "bert-model")
    experiment = initialised(encoder(Labelled(("lines.jsonl",)), SequenceLabels(), SequenceClassifier()), folder)
    assert published_config(folder).pooler and not experiment.model.pooler


@pytest.mark.slow
@pytest.mark.parametrize("classes", ["abc", *(pytest.param(c, marks=pytest.mark.slow) for c in ("ab", "abcd"))])
@pytest.mark.usefixtures("quick")
def test_the_data_decides_on_the_number_of_classes_and_as_many_keep_their_parameters(published: Published, tmp_path: Path, classes: str) -> None:
    lines = [json.dumps({"text": f"{a} {b}", "label": c}) for a in ("to", "be", "or") for b in ("not", "the") for c in classes]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    folder = published(tmp_path / "bert", "bert-classes")
    experiment = initialised(encoder(Labelled((str(tmp_path / "lines.jsonl"),), held_out=0.3), SequenceLabels(), SequenceClassifier()), folder)
    made = train(experiment.replace(run=experiment.run.replace(folder=str(tmp_path / "run")), optimizer=AdamW(1e-30)))
    kernel = np.asarray(load_run(made)[1]["params"]["head"]["kernel"])
    theirs = np.asarray(from_pretrained(folder)[1]["params"]["head"]["kernel"])
    assert kernel.shape == (30, len(classes))
    assert (len(classes) == 3) == np.array_equal(kernel, theirs)


@pytest.mark.parametrize(
    ("case", "make", "objective"),
    [
        ("bert", lambda: encoder(Text(), MaskedTokens(rate=0.3)), MaskedTokens(rate=0.3, mask_token=4)),
        ("bert", lambda: encoder(Labelled(("a",)), SequenceLabels(), SequenceClassifier()), SequenceLabels()),
        ("bert", lambda: encoder(TokenLabelled(("a",)), TokenLabels(), TokenClassifier()), TokenLabels()),
        ("marian", lambda: translator(Pairs(("a",))), SourceToTarget(begin_token=60, end_token=0)),
        ("gpt2", lambda: language("a"), NextToken()),
    ],
    ids=["masked", "classes", "classes of tokens", "pairs", "text"],
)
def test_special_tokens_are_the_folders(published: Published, tmp_path: Path, case: str, make: Callable[[], Experiment], objective: Any) -> None:
    assert initialised(make(), published(tmp_path / case, case)).objective == objective


def test_the_tokens_that_generation_config_names_begin_and_end_a_target(published: Published, tmp_path: Path) -> None:
    folder = published(tmp_path / "t5", "t5", decoder_start_token_id=0, eos_token_id=[7, 1])
    assert initialised(translator(Pairs(("a",))), folder).objective == SourceToTarget(begin_token=0, end_token=7)


def test_tokens_beyond_the_models_vocabulary_are_none_of_its(published: Published, tmp_path: Path) -> None:
    folder = published(tmp_path / "t5", "t5", decoder_start_token_id=0, eos_token_id=[61, 60])
    assert initialised(translator(Pairs(("a",))), folder).objective == SourceToTarget(begin_token=0, end_token=60)
    folder = published(tmp_path / "other", "t5", decoder_start_token_id=61, eos_token_id=1)
    with pytest.raises(ValueError, match="received one without decoder_start_token_id; add it"):
        initialised(translator(Pairs(("a",))), folder)


@pytest.mark.parametrize(
    ("case", "make", "message"),
    [
        ("bert", lambda: language("a"), "--init: expected a model of the recipe's kind, DecoderOnly, received one of another, EncoderOnly; take a recipe"),
        ("llama", lambda: language("a", start="runs/x"), "--init: expected a recipe that starts from nothing, received one that starts from runs/x; leave one"),
        ("marian", lambda: translator(Dates()), "--init: expected data that takes a tokenizer, received Dates, which has its own; give files by --data"),
        ("t5", lambda: translator(Pairs(("a",))), "objective: expected a model with tokens that begin and end a target, received one without decoder_start"),
        ("marian", lambda: translator(Text(), CorruptedSpans()), "objective: expected one that can take a published model's special tokens, received Corr"),
    ],
    ids=["another kind", "start", "data", "no begin", "spans"],
)
def test_what_does_not_fit_together_is_refused(published: Published, tmp_path: Path, case: str, make: Callable[[], Experiment], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        initialised(make(), published(tmp_path / case, case))


def test_masks_want_a_token_for_them(published: Published, tmp_path: Path) -> None:
    folder = published(tmp_path / "bert", "bert")
    content = (folder / "tokenizer.json").read_text().replace("[MASK]", "[OTHER]")
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"objective: expected a tokenizer with a token for a mask, \[MASK\] or <mask>, received one without; take a model"):
        initialised(encoder(Text(), MaskedTokens()), folder)


def test_folders_that_hold_no_published_model_are_refused_with_the_way_out(published: Published, tmp_path: Path, text_file: str) -> None:
    experiment = language(text_file)
    with pytest.raises(FileNotFoundError, match="nowhere: expected a folder with a published model, received one that does not exist"):
        initialised(experiment, tmp_path / "nowhere")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text('{"type": "transformer_jax.training.experiment:Experiment"}')
    with pytest.raises(ValueError, match=r"--init: expected a folder with a published model, received .*run, a run's; start from it by --run\.start .*run, or"):
        initialised(experiment, tmp_path / "run")
    folder = published(tmp_path / "llama", "llama")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected a tokenizer\.json beside config\.json, received a folder without"):
        initialised(experiment, folder)
