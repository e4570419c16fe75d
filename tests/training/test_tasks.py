"""What each objective asks of a model, and that what it minimises is the cross-entropy of the model's logits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transformer_jax.layers import (
    Attention,
    Causal,
    CrossAttention,
    Dense,
    Group,
    LanguageModel,
    MaskedLanguageModel,
    NoMask,
    Residual,
    SequenceClassifier,
    Stack,
    TokenClassifier,
)
from transformer_jax.models import EncoderDecoderConfig, EncoderOnlyConfig, ModelConfig
from transformer_jax.training import CorruptedSpans, MaskedTokens, Objective, SequenceLabels, SourceToTarget, TokenLabels

pytestmark = pytest.mark.usefixtures("quick")
V, T, B, C = 131, 11, 3, 5
LENGTHS = np.array([[11], [4], [1]])


def padded(seed: int, high: int) -> jax.Array:
    rows = np.random.default_rng(seed).integers(0, high, (B, T))
    return jnp.asarray(np.where(np.arange(T) < LENGTHS, rows, -1), jnp.int32)


def encoder(head: Any) -> ModelConfig:
    return EncoderOnlyConfig(V, d_model=8, max_length=T, stack=Stack((Group(1, (Residual(Attention(2, mask=NoMask())), Residual(Dense(7)))),)), head=head)


def translator() -> ModelConfig:
    looking, causal, cross = Residual(Attention(2, mask=NoMask())), Residual(Attention(2, mask=Causal())), Residual(CrossAttention(2))
    return EncoderDecoderConfig(
        V, d_model=8, max_length=T, encoder=Stack((Group(1, (looking,)),)), decoder=Stack((Group(1, (causal, cross)),)), head=LanguageModel(bias=True)
    )  # fmt: skip


CASES: dict[str, tuple[Objective, ModelConfig, dict[str, jax.Array]]] = {
    "masked": (MaskedTokens(rate=0.4), encoder(MaskedLanguageModel()), {"tokens": padded(0, 130)}),
    "spans": (CorruptedSpans(rate=0.4, mean_span=2.0), translator(), {"tokens": padded(1, 30)}),
    "pairs": (SourceToTarget(0.1), translator(), {"source": padded(2, 130), "target": padded(3, 130)[:, :-1]}),
    "sequence": (SequenceLabels(z_loss=0.01), encoder(SequenceClassifier(C)), {"tokens": padded(4, 130), "label": jnp.array([3, -1, 0])}),
    "tokens": (TokenLabels(), encoder(TokenClassifier(C)), {"tokens": padded(5, 130), "labels": padded(6, C)}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_the_cross_entropy_of_the_logits_at_the_labels_that_count(name: str, filled: Any, close: Any) -> None:
    objective, config, batch = CASES[name]
    model = config.make()
    variables, key = filled(model, *config.example()), jax.random.key(7)

    @jax.jit
    def both(batch: Any) -> Any:
        inputs, labels, options = objective.task(config, batch, key)
        return labels, model.apply(variables, *inputs, **options), objective(model, variables, batch, {"corruption": key})

    labels, logits, sums = both(batch)
    wanted = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), objective.label_smoothing)
    loss = optax.softmax_cross_entropy(logits, wanted) + objective.z_loss * jax.nn.logsumexp(logits, -1) ** 2
    close(sums.total, jnp.where(labels >= 0, loss, 0).sum())
    assert float(sums.weight) == (labels >= 0).sum() > 0
    assert float(sums.correct) == ((logits.argmax(-1) == labels) & (labels >= 0)).sum()


@pytest.mark.parametrize("name", CASES)
def test_padding_and_what_lies_in_it_changes_nothing(name: str, filled: Any, close: Any) -> None:
    objective, config, batch = CASES[name]
    model = config.make()
    variables = filled(model, *config.example())
    longer = {n: jnp.pad(a, ((0, 0), (0, 3)), constant_values=-1) if a.ndim == 2 else a for n, a in batch.items()}
    if name in ("masked", "spans"):  # what is random depends on the shape
        longer = {n: jnp.where(a < 0, -7, a) for n, a in batch.items()}
    roomy = config.replace(max_length=T + 3).make()
    close(*(jax.jit(objective, static_argnums=0)(m, variables, b).total for m, b in ((roomy, longer), (model, batch))))


def test_masks_are_the_last_token_and_only_hidden_tokens_are_asked_for() -> None:
    objective, config, batch = CASES["masked"]
    (inputs,), labels, options = objective.task(config, batch, jax.random.key(0))
    hidden = labels >= 0
    assert (inputs[~hidden] == batch["tokens"][~hidden]).all() and (labels[hidden] == batch["tokens"][hidden]).all()
    assert (inputs == V - 1).any() and (options["valid"] == (batch["tokens"] >= 0)).all() and not (hidden & ~options["valid"]).any()


def test_spans_come_back_from_source_and_target() -> None:
    objective, config, batch = CASES["spans"]
    (source, inputs), labels, options = objective.task(config, batch, jax.random.key(0))
    end = V - 101
    assert (options["source_valid"] == (source >= 0)).all() and (inputs[:, 0] == end).all()
    for row in range(B):
        asked = [int(t) for t in labels[row] if t >= 0]
        assert asked[-1] == end and [int(t) for t in inputs[row][1 : len(asked)]] == asked[:-1]
        spans: dict[int, list[int]] = {}
        for token in asked[:-1]:
            spans.setdefault(token, []) if token > end else spans[min(spans)].append(token)
        kept = [token for token in source[row].tolist() if 0 <= token != end]
        text = [t for token in kept for t in spans.get(token, [token])]
        assert text == [int(t) for t in batch["tokens"][row] if t >= 0]


def test_a_target_is_begun_and_ended_by_the_last_token() -> None:
    objective, config, batch = CASES["pairs"]
    (source, inputs), labels, _ = objective.task(config, batch, jax.random.key(0))
    assert source is batch["source"]
    for row, length in enumerate(np.minimum(LENGTHS[:, 0], T - 1)):
        target = [int(t) for t in batch["target"][row, :length]]
        assert [int(t) for t in labels[row]] == target + [V - 1] + [-1] * (T - 1 - length)
        assert [int(t) for t in inputs[row, : length + 1]] == [V - 1, *target]


@pytest.mark.parametrize("name", CASES)
def test_a_row_that_is_all_padding_does_not_count(name: str, filled: Any, close: Any) -> None:
    objective, config, batch = CASES[name]
    model = config.make()
    variables = filled(model, *config.example())
    longer = {n: jnp.concatenate([a, jnp.full_like(a[:2], -1)]) for n, a in batch.items()}
    if name in ("masked", "spans"):  # what is random depends on the shape
        assert (objective.task(config, longer, jax.random.key(0)).labels[B:] < 0).all()
    else:
        close(*(jax.jit(objective, static_argnums=0)(model, variables, b) for b in (longer, batch)))


def test_what_is_random_follows_the_key_and_is_fixed_without_one(filled: Any) -> None:
    objective, config, batch = CASES["masked"]
    model = config.make()
    variables = filled(model, *config.example())
    streams: list[Any] = [None, {}, *({"corruption": jax.random.key(n)} for n in (1, 2))]
    run = jax.jit(objective, static_argnums=0)
    losses = [float(run(model, variables, batch, rngs).total) for rngs in streams]
    assert losses[0] == losses[1] and len(set(losses)) == 3


def test_rates_are_checked() -> None:
    for rate in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"MaskedTokens\.rate: expected"):
            MaskedTokens(rate=rate)
        with pytest.raises(ValueError, match="rate: expected"):
            CorruptedSpans(rate=rate)
    with pytest.raises(ValueError, match="mean_span: expected"):
        CorruptedSpans(mean_span=0.5)
