"""What is minimised, as a function of a model, its variables and a batch.

In a batch a negative token is padding, and a negative label is not counted.
"""

import functools
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.loss import linear_cross_entropy
from transformer_jax.config import Config
from transformer_jax.data import Prepared
from transformer_jax.generation import Sampling
from transformer_jax.layers.base import check_not_negative, check_positive, check_rate
from transformer_jax.models.base import ModelConfig
from transformer_jax.ops.corruption import corrupt_spans, mask_tokens, span_lengths
from transformer_jax.training import samples
from transformer_jax.training.sown import SOWN, added_losses, router_metrics
from transformer_jax.typing import Array

Batch = dict[str, Array]


class Asked(NamedTuple):
    """What a sample is to be of.

    Attributes:
        prompt: what is to be continued.
        tokens: how long a text.
        temperature: of what is drawn.
        key: with which.
    """

    prompt: str
    tokens: int
    temperature: float
    key: Array


class LossSums(NamedTuple):
    """Sums over the labels of a batch that count. Only `total` is differentiable.

    Attributes:
        total: of what is minimised: weight * (the labels' loss + the losses that layers sow).
        nll: of weight * -log p(label), in nats.
        correct: of weight where the label is the likeliest.
        weight: of weights.
        metrics: what is written down beside these, each times the weight.
    """

    total: Array
    nll: Array
    correct: Array
    weight: Array
    metrics: dict[str, Array]


class Task(NamedTuple):
    """What a model is asked, and the answers.

    Attributes:
        inputs: the arguments of the model's call.
        labels: `[B, T]`, or `[B]` for a pooled head; negative ones are ignored.
        options: of the call.
    """

    inputs: tuple[Array, ...]
    labels: Array
    options: dict[str, Array]


class SpecialTokens(NamedTuple):
    """A published model's: None for what it has not.

    Attributes:
        begin: of what an encoder-decoder writes.
        end: of a text.
        mask: in place of a token that is to be found.
    """

    begin: int | None
    end: int | None
    mask: int | None


@dataclass(frozen=True)
class Objective(Config):
    """Open base of objectives: cross-entropy of the labels of a task. One of another kind overrides `__call__`.

    Attributes:
        label_smoothing: in [0, 1).
        z_loss: weight of the squared log of the softmax's sum.
        extra_tokens: tokens of its own, behind those of the data's vocabulary.
    """

    label_smoothing: float = 0.0
    _: KW_ONLY
    z_loss: float = 0.0
    extra_tokens: ClassVar[int] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rate(self, "label_smoothing")
        check_not_negative(self, "z_loss")

    def task(self, model: ModelConfig, batch: Batch, key: Array) -> Task:
        """A batch as a task: a pure function of the batch and a key."""
        raise NotImplementedError(f"{type(self).__name__} must define task(model, batch, key)")

    def published(self, tokens: SpecialTokens) -> "Objective":
        """The same with a published model's special tokens in place of its own.

        Raises:
            ValueError: the model has not what it needs.
        """
        if self.extra_tokens:
            received = f"received {type(self).__name__}, which has its own; take another recipe"
            raise ValueError(f"objective: expected one that can take a published model's special tokens, {received}")
        return self

    def begin(self, model: ModelConfig) -> int | None:
        """The token that begins what an encoder-decoder writes; None where nothing is written so."""
        return None

    def end(self, model: ModelConfig) -> int | None:
        """The token that ends it."""
        return self.begin(model)

    def example(self, batch: int, length: int) -> Batch:
        """A batch as `task` takes it, of `length` tokens to a sequence, all 0."""
        return {"tokens": jnp.zeros((batch, length), jnp.int32)}

    def sample(self, model: Any, variables: Any, data: Prepared, asked: Asked) -> str:
        """What a trained model makes of a prompt, or of a few held-out examples, as text to look at. `model` is unstacked."""
        return ""

    def __call__(self, model: nn.Module, variables: Any, batch: Batch, rngs: dict[str, Array] | None = None) -> LossSums:
        """Sums over a batch; the loss is total / weight. Without `rngs`, or the stream "corruption" in them, what is random is the same at each call.

        What layers sow into "losses" is added to the loss; of experts there are metrics: "aux_loss", what is added, and "router_load_max".
        """
        key = jax.random.key(0) if rngs is None or "corruption" not in rngs else rngs["corruption"]
        inputs, labels, options = self.task(cast(Any, model).config, batch, key)
        (x, head), sown = cast(Any, model).apply(variables, *inputs, **options, rngs=rngs, method="prelogits", mutable=SOWN)
        sums = linear_cross_entropy(
            x.reshape(-1, x.shape[-1]),
            head.kernel,
            labels.reshape(-1),
            bias=head.bias,
            softcap=head.softcap,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
        )
        metrics, loss = router_metrics(sown), added_losses(sown)
        total = sums.total
        if loss is not None:
            total, metrics["aux_loss"] = total + sums.weight * loss, loss
        return LossSums(total, sums.nll, sums.correct, sums.weight, {name: sums.weight * jax.lax.stop_gradient(a) for name, a in metrics.items()})


@dataclass(frozen=True)
class NextToken(Objective):
    """Each token given those before it. Fields: `Objective`'s.

    A batch holds "tokens" `[B, T + 1]`, and may hold "segment_ids" and "positions" of the same shape.
    """

    def example(self, batch: int, length: int) -> Batch:
        return super().example(batch, length + 1)

    def task(self, model: ModelConfig, batch: Batch, key: Array) -> Task:
        tokens = batch["tokens"]
        labels = tokens[:, 1:]
        if "segment_ids" in batch:  # the first token of a segment is not predicted from the last of another
            labels = jnp.where(batch["segment_ids"][:, 1:] == batch["segment_ids"][:, :-1], labels, -1)
        options = {name: a[:, :-1] for name, a in batch.items() if name in ("segment_ids", "positions")}
        return Task((jnp.maximum(tokens[:, :-1], 0),), labels, options)

    def sample(self, model: Any, variables: Any, data: Prepared, asked: Asked) -> str:
        return samples.continued(model, variables, data.vocabulary, asked.prompt, asked.tokens, Sampling(asked.temperature), asked.key)


@dataclass(frozen=True)
class MaskedTokens(Objective):
    """Tokens behind masks: 80 % of those chosen become the mask, 10 % another token, 10 % stay (BERT).

    A batch holds "tokens" `[B, T]`, of which the model's max_length are used. Further fields: `Objective`'s.

    Attributes:
        rate: share of the tokens that are chosen.
        mask_token: the last of the model's vocabulary unless given.
    """

    _: KW_ONLY
    rate: float = 0.15
    mask_token: int | None = None
    extra_tokens: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "rate")
        check_rate(self, "rate")

    def published(self, tokens: SpecialTokens) -> "MaskedTokens":
        if tokens.mask is None:
            way_out = "take a model that was trained with masks"
            raise ValueError(f"objective: expected a tokenizer with a token for a mask, [MASK] or <mask>, received one without; {way_out}")
        return self.replace(mask_token=tokens.mask)

    def task(self, model: ModelConfig, batch: Batch, key: Array) -> Task:
        tokens, last = batch["tokens"][:, : model.max_length], _vocab_size(model) - 1
        mask = last if self.mask_token is None else self.mask_token
        inputs, labels = mask_tokens(key, tokens, rate=self.rate, mask_token=mask, vocab_size=last if mask == last else last + 1)
        return Task((inputs,), labels, {"valid": tokens >= 0})

    def sample(self, model: Any, variables: Any, data: Prepared, asked: Asked) -> str:
        """Passages with the likeliest token behind each mask in brackets, the right one after it where it is another."""
        task = self.task(model.config, jax.tree.map(jnp.asarray, samples.first_examples(data, 2)), asked.key)
        guesses = np.asarray(model.apply(variables, *task.inputs, **task.options).argmax(-1))

        def shown(guess: int, label: int) -> str:
            made, right = (samples.text_of(data.vocabulary, [t]) for t in (guess, label))
            return f"[{made}]" if guess == label else f"[{made}|{right}]"

        rows = zip(np.asarray(task.inputs[0]), np.asarray(task.labels), guesses)
        return "\n\n".join("".join(shown(g, n) if n >= 0 else samples.text_of(data.vocabulary, [t]) for t, n, g in zip(*row)) for row in rows)


@dataclass(frozen=True)
class CorruptedSpans(Objective):
    """Spans that were cut out of a text, for an encoder-decoder: see `corrupt_spans` (T5).

    A batch holds "tokens" `[B, T]`, of which the model's max_length are used. The sentinels are the last tokens of the model's vocabulary, the first of them
    the very last, and before them is the token that ends a sequence and begins a target. Further fields: `Objective`'s.

    Attributes:
        rate: share of the tokens that are cut out.
        mean_span: tokens to a span.
    """

    _: KW_ONLY
    rate: float = 0.15
    mean_span: float = 3.0
    extra_tokens: ClassVar[int] = 101

    def __post_init__(self) -> None:
        super().__post_init__()
        span_lengths(2, rate=self.rate, mean_span=self.mean_span)

    def begin(self, model: ModelConfig) -> int:
        return _vocab_size(model) - 101

    def task(self, model: ModelConfig, batch: Batch, key: Array) -> Task:
        tokens, last, end = batch["tokens"][:, : model.max_length], _vocab_size(model) - 1, self.begin(model)
        longest = span_lengths(tokens.shape[1], rate=self.rate, mean_span=self.mean_span)
        source, target = corrupt_spans(
            key, tokens, rate=self.rate, mean_span=self.mean_span, first_sentinel=last, end_token=end,
            source_length=longest[0], target_length=longest[1],
        )  # fmt: skip
        return _source_to_target(source, target, begin=end)


@dataclass(frozen=True)
class SourceToTarget(Objective):
    """A target given its source, for an encoder-decoder. Fields: `Objective`'s.

    A batch holds "source" `[B, S]` and "target" `[B, T]`. Without a source there is nothing to predict.

    Attributes:
        end_token: ends a target; the last of the model's vocabulary unless given.
        begin_token: begins a target; the one that ends it unless given.
    """

    _: KW_ONLY
    end_token: int | None = None
    begin_token: int | None = None
    extra_tokens: ClassVar[int] = 1

    def published(self, tokens: SpecialTokens) -> "SourceToTarget":
        if tokens.begin is None or tokens.end is None:
            missing = "decoder_start_token_id" if tokens.begin is None else "eos_token_id"
            raise ValueError(f"objective: expected a model with tokens that begin and end a target, received one without {missing}; add it to its config.json")
        return self.replace(begin_token=tokens.begin, end_token=tokens.end)

    def begin(self, model: ModelConfig) -> int:
        return self.end(model) if self.begin_token is None else self.begin_token

    def end(self, model: ModelConfig) -> int:
        return _vocab_size(model) - 1 if self.end_token is None else self.end_token

    def example(self, batch: int, length: int) -> Batch:
        return {"source": jnp.zeros((batch, length), jnp.int32), "target": jnp.zeros((batch, length - 1), jnp.int32)}

    def task(self, model: ModelConfig, batch: Batch, key: Array) -> Task:
        end, target = self.end(model), batch["target"]
        length = (target >= 0).sum(-1, keepdims=True)
        there = (batch["source"] >= 0).any(-1, keepdims=True)  # a row that is all padding has nothing to end
        target = jnp.where((jnp.arange(target.shape[1] + 1) == length) & there, end, jnp.pad(target, ((0, 0), (0, 1)), constant_values=-1))
        return _source_to_target(batch["source"], target[:, : model.max_length], begin=self.begin(model))

    def sample(self, model: Any, variables: Any, data: Prepared, asked: Asked) -> str:
        """Sources, what the model makes of them, and the right target where it is another."""
        batch, text = samples.first_examples(data, 8), functools.partial(samples.text_of, data.vocabulary)
        ends = {"begin": self.begin(model.config), "end": self.end(model.config)}
        made = samples.translated(model, variables, batch["source"], **ends, length=batch["target"].shape[1])
        rows = [(text(source), text(m), text(target)) for source, m, target in zip(batch["source"], made, batch["target"])]
        return "\n".join(f"{source} -> {made}" + ("" if made == target else f" (right: {target})") for source, made, target in rows)


@dataclass(frozen=True)
class SequenceLabels(Objective):
    """The class of a sequence. A batch holds "tokens" `[B, T]` and "label" `[B]`. Fields: `Objective`'s.

    It has `MaskedTokens`' extra token, so that it can start from parameters that were trained so.
    """

    extra_tokens: ClassVar[int] = MaskedTokens.extra_tokens

    def published(self, tokens: SpecialTokens) -> "Objective":
        return self

    def example(self, batch: int, length: int) -> Batch:
        return {**super().example(batch, length), "label": jnp.zeros((batch,), jnp.int32)}

    def task(self, model: ModelConfig, batch: Batch, key: Array) -> Task:
        return Task((batch["tokens"],), batch["label"], {"valid": batch["tokens"] >= 0})

    def sample(self, model: Any, variables: Any, data: Prepared, asked: Asked) -> str:
        """The class of a few passages, and the right one where it is another."""
        batch = samples.first_examples(data, 4)
        made = np.asarray(model.apply(variables, batch["tokens"], valid=batch["tokens"] >= 0).argmax(-1))
        names = [(data.labels[m], data.labels[n]) for m, n in zip(made, batch["label"])]
        heads = [a if a == b else f"{a} (right: {b})" for a, b in names]
        return "\n\n".join(f"{head}:\n{samples.text_of(data.vocabulary, tokens)}" for head, tokens in zip(heads, batch["tokens"]))


@dataclass(frozen=True)
class TokenLabels(Objective):
    """The class of each token. A batch holds "tokens" and "labels" `[B, T]`. Fields: `Objective`'s. Of its extra token see `SequenceLabels`."""

    extra_tokens: ClassVar[int] = MaskedTokens.extra_tokens

    def published(self, tokens: SpecialTokens) -> "Objective":
        return self

    def example(self, batch: int, length: int) -> Batch:
        return {name: jnp.zeros((batch, length), jnp.int32) for name in ("tokens", "labels")}

    def task(self, model: ModelConfig, batch: Batch, key: Array) -> Task:
        return Task((batch["tokens"],), batch["labels"], {"valid": batch["tokens"] >= 0})

    def sample(self, model: Any, variables: Any, data: Prepared, asked: Asked) -> str:
        """A passage, cut where the class changes, each piece with its class."""
        batch = samples.first_examples(data, 1)
        made = np.asarray(model.apply(variables, batch["tokens"], valid=batch["tokens"] >= 0).argmax(-1))
        pieces = samples.runs(zip(made[0], batch["tokens"][0]))
        return "\n".join(f"{data.labels[n]:>12}  {samples.text_of(data.vocabulary, tokens)!r}" for n, tokens in pieces if max(tokens) >= 0)


def _source_to_target(source: Array, target: Array, begin: int) -> Task:
    """`target` ends with its end token, which is predicted too."""
    inputs = jnp.concatenate([jnp.full_like(target[:, :1], begin), jnp.maximum(target[:, :-1], 0)], 1)
    return Task((source, inputs), target, {"source_valid": source >= 0})


def _vocab_size(model: ModelConfig) -> int:
    assert model.vocab_size is not None  # the model itself has refused that by now
    return model.vocab_size
