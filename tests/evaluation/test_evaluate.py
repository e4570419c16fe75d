"""What an evaluation finds for each objective, against plain counting over the model's logits."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import matplotlib.image
import numpy as np
import pytest

from transformer_jax.data import Prepared, Text
from transformer_jax.evaluation import Evaluation, Findings, Trained, evaluate
from transformer_jax.layers import (
    Attention,
    Causal,
    CrossAttention,
    Dense,
    Group,
    Head,
    LanguageModel,
    NoMask,
    Residual,
    SequenceClassifier,
    Stack,
    TokenClassifier,
)
from transformer_jax.models import DecoderOnlyConfig, EncoderDecoderConfig, EncoderOnlyConfig, ModelConfig
from transformer_jax.tokenize import CharacterVocabulary
from transformer_jax.training import Experiment, MaskedTokens, NextToken, Objective, Run, SequenceLabels, SourceToTarget, TokenLabels
from transformer_jax.training.samples import translated

pytestmark = pytest.mark.usefixtures("quick_compile")
VOCABULARY = CharacterVocabulary("abcdé")
V, T, ROWS, C = VOCABULARY.vocab_size + 1, 7, 11, 3


def padded(seed: int, high: int, length: int = T) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(np.arange(length) < rng.integers(1, length + 1, (ROWS, 1)), rng.integers(0, high, (ROWS, length)), -1).astype(np.int32)


def one_stack(kind: Any, mask: Any, head: Head) -> ModelConfig:
    stack = Stack((Group(1, (Residual(Attention(2, mask=mask)), Residual(Dense(11)))),))
    return kind(V, d_model=8, max_length=T, stack=stack, head=head)  # type: ignore[no-any-return]


def trained(filled: Any, config: ModelConfig, objective: Objective, names: tuple[str, ...] = (), **arrays: np.ndarray) -> Trained:
    examples = grain.MapDataset.source([dict(zip(arrays, row)) for row in zip(*arrays.values())])
    experiment = Experiment(config, data=Text(), run=Run("unused", steps=1, batch=1), objective=objective)
    model = config.make()
    return Trained(experiment, model, filled(model, *config.example(1, T)), Prepared(VOCABULARY, examples, examples, "", "", names))


def found(t: Trained, *, batch: int = 4, **how: Any) -> Findings:
    return evaluate(t.experiment.objective, t, Evaluation(batch, **how))


@pytest.mark.parametrize("limit", [None, 6, 99])
@pytest.mark.parametrize("each", ["sequence", "token"])
def test_classes_are_counted_over_all_examples(filled: Any, tmp_path: Path, each: str, limit: int | None) -> None:
    tokens, head = padded(0, V), {"sequence": SequenceClassifier(C + 1), "token": TokenClassifier(C + 1)}[each]
    right = padded(1, C)[:, 0] if each == "sequence" else np.where(tokens >= 0, padded(1, C), -1)
    objective, name = (SequenceLabels(), "label") if each == "sequence" else (TokenLabels(), "labels")
    t = trained(filled, one_stack(EncoderOnlyConfig, NoMask(), head), objective, ("a", "b", "c"), **{"tokens": tokens, name: right})
    findings = found(t, limit=limit)
    logits = np.asarray(t.model.apply(t.variables, tokens, valid=tokens >= 0), np.float64)[:limit]
    made, right = logits.argmax(-1), right[:limit]
    counted = right >= 0
    nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, np.maximum(right, 0)[..., None], -1)[..., 0]
    numbers = findings.numbers
    assert numbers["labels"] == counted.sum() and numbers["loss"] == pytest.approx(nll[counted].mean(), rel=1e-5)
    assert numbers["accuracy"] == pytest.approx((made == right)[counted].mean())
    assert numbers["confusion"] == [[int(((made == m) & (right == r)).sum()) for m in range(C + 1)] for r in range(C + 1)]
    assert numbers["always_the_most_frequent"] == pytest.approx(np.bincount(right[counted]).max() / counted.sum())
    assert list(numbers["classes"]) == ["a", "b", "c", "3"] and numbers["classes"]["b"]["support"] == (right == 1).sum()
    findings.pictures["confusion.png"](tmp_path / "confusion.png")
    picture = matplotlib.image.imread(tmp_path / "confusion.png")
    assert min(picture.shape[:2]) > 300 and picture[..., :3].std() > 0.05


def test_targets_are_made_anew_and_wrong_ones_shown(filled: Any) -> None:
    stacks = {"encoder": (Residual(Attention(2, mask=NoMask())),), "decoder": (Residual(Attention(2, mask=Causal())), Residual(CrossAttention(2)))}
    config = EncoderDecoderConfig(V, d_model=8, max_length=T, **{name: Stack((Group(1, layers),)) for name, layers in stacks.items()})
    sources, model = padded(0, 5), config.make()
    made = translated(model, filled(model, *config.example(1, T)), sources, begin=V - 1, end=V - 1, length=T)
    right = np.where(np.arange(ROWS)[:, None] % 3 == 1, padded(2, 5), made)
    exact = [[t for t in a if t >= 0] == [t for t in b if t >= 0] for a, b in zip(made, right)]
    assert 0 < sum(exact) < ROWS
    findings = found(trained(filled, config, SourceToTarget(), source=sources, target=right))
    assert findings.numbers["exact_match"] == pytest.approx(np.mean(exact))
    text = ["".join(VOCABULARY.decode([t]) for t in row if 0 <= t < V - 1) for row in sources]
    assert [each["source"] for each in findings.numbers["wrong"]] == [text[n] for n in range(ROWS) if not exact[n]]
    assert findings.shown[0].startswith(f"{text[1]} -> ") and findings.shown[0].endswith(f"(right: {VOCABULARY.decode([t for t in right[1] if t >= 0])})")


def test_text_in_examples_of_its_own_is_taken_as_it_is(filled: Any) -> None:
    tokens = padded(3, 5, T + 1)
    t = trained(filled, one_stack(DecoderOnlyConfig, Causal(), LanguageModel()), NextToken(), tokens=tokens)
    sums, numbers = NextToken()(t.model, t.variables, {"tokens": tokens}), found(t).numbers
    assert numbers["loss"] == pytest.approx(float(sums.nll / sums.weight), rel=1e-5) and numbers["labels"] == int(sums.weight)
    assert numbers["perplexity"] == pytest.approx(math.exp(numbers["loss"]))
    size = len(VOCABULARY.decode([i for i in tokens[:, 1:].ravel() if i >= 0]).encode())
    assert numbers["bits_per_byte"] == pytest.approx(float(sums.nll) / math.log(2) / size, rel=1e-5)
    with pytest.raises(ValueError, match="stride: expected none where examples are taken as they are, not laid over a running text, received 3; leave it out"):
        found(t, stride=3)


def test_windows_of_a_text_are_laid_anew_over_what_training_looks_at(filled: Any, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("abcdé" * 40)
    data = Text((str(tmp_path / "text"),), held_out=0.3).prepare(T)
    t = trained(filled, one_stack(DecoderOnlyConfig, Causal(), LanguageModel()), NextToken(), tokens=padded(0, 5))._replace(data=data)
    windows = np.stack([data.held_out[n]["tokens"] for n in range(len(data.held_out))])
    sums = NextToken()(t.model, t.variables, {"tokens": windows})
    numbers = found(t, stride=T).numbers
    assert len(windows) * T < 59  # of 60 tokens: something is left over
    assert numbers["labels"] == len(windows) * T and numbers["loss"] == pytest.approx(float(sums.nll / sums.weight), rel=1e-6)
    assert numbers["bits_per_byte"] * math.log(2) * len(data.vocabulary.decode(windows[:, 1:].ravel()).encode()) == pytest.approx(float(sums.nll), rel=1e-6)
    half = found(t, limit=3).numbers
    assert half["labels"] == 3 * T and half["stride"] == T // 2


@dataclass(frozen=True)
class Own(MaskedTokens):
    pass


@dataclass(frozen=True)
class Further(Own):
    pass


@evaluate.register
def _further(objective: Further, trained: Trained, how: Evaluation) -> Findings:
    return Findings({"batch": how.batch})


def test_an_objective_of_ones_own_has_the_loss_of_its_sums_or_what_it_registers(filled: Any) -> None:
    tokens, config = padded(0, 5), one_stack(EncoderOnlyConfig, NoMask(), LanguageModel())
    t = trained(filled, config, Own(), tokens=tokens)
    sums = Own()(t.model, t.variables, {"tokens": tokens})
    expected = {"labels": int(sums.weight), "loss": pytest.approx(float(sums.nll / sums.weight), rel=1e-5), "accuracy": float(sums.correct / sums.weight)}
    assert found(t, batch=ROWS).numbers == expected
    assert found(trained(filled, config, Further(), tokens=tokens)).numbers == {"batch": 4}


def test_where_nothing_counts_there_is_no_loss(filled: Any) -> None:
    t = trained(filled, one_stack(EncoderOnlyConfig, NoMask(), SequenceClassifier(C)), SequenceLabels(), tokens=padded(0, V), label=np.full(ROWS, -1))
    with pytest.raises(ValueError, match="limit: expected at least one label among the examples, received none; take more of them"):
        found(t, limit=2)


@pytest.mark.parametrize("options", [{"batch": 0}, {"limit": 0}, {"stride": -1}], ids=str)
def test_options_that_cannot_work_are_refused(options: dict[str, int]) -> None:
    (name, value), *_ = options.items()
    with pytest.raises(ValueError, match=rf"Evaluation\.{name}: expected more than 0, received {value}"):
        Evaluation(**{"batch": 1, **options})
