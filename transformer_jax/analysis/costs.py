"""What a model costs, by its parts."""

import collections
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax

from transformer_jax.analysis.flops import flops
from transformer_jax.analysis.jaxprs import Path
from transformer_jax.analysis.memory import activation_bytes, peak_bytes
from transformer_jax.analysis.parts import Part, part_of, parts
from transformer_jax.analysis.sizes import parameters
from transformer_jax.layers.base import Mlp
from transformer_jax.models.base import variable_shapes
from transformer_jax.training.objective import NextToken, Objective


@dataclass(frozen=True)
class Cost:
    """Of a part of a model, for one batch.

    Attributes:
        parameters: how many.
        forward: FLOPs of its matrix products in the forward pass, loss included.
        training: the same in a training step: forward, backward, and what remat computes again.
        kept: bytes kept for the backward pass.
    """

    parameters: int = 0
    forward: int = 0
    training: int = 0
    kept: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values())))


def costs(model: Any, *, batch: int, length: int, objective: Objective = NextToken()) -> dict[Part, Cost]:
    """What each part of a model costs, in the order in which data flows; nothing is compiled or run.

    FLOPs are those of the `reference` backend, which computes all T x T scores of attention; bytes are those of the model's own backend.

    Args:
        model: of `config.make(...)`.
        batch: sequences.
        length: tokens of each, as `objective.example` takes them, at most the config's max_length.
        objective: what is minimised in training.
    """
    plain = model.clone(backend="reference")
    found = {
        "parameters": parameters(model, *model.config.example()),
        "forward": flops(*_loss(plain, batch, length, objective)),
        "training": flops(*_gradients(plain, batch, length, objective)),
        "kept": activation_bytes(*_loss(model, batch, length, objective)),
    }
    by_part = {name: _by_part(model.config, counts) for name, counts in found.items()}
    each = {part: Cost(**{name: counts[part] for name, counts in by_part.items()}) for part in parts(model.config)}
    return {part: cost for part, cost in each.items() if cost != Cost()}


def _by_part(config: Any, counts: Mapping[Path, int]) -> collections.Counter[Part]:
    found: collections.Counter[Part] = collections.Counter()
    for path, n in counts.items():
        found[part_of(config, path)] += n
    return found


@dataclass(frozen=True)
class Peak:
    """The most bytes held at once beside the parameters, as `peak_bytes` predicts.

    Attributes:
        forward: by the forward pass, logits included.
        training: by loss and gradients, gradients included.
    """

    forward: int
    training: int


def peak(model: Any, *, batch: int, length: int, objective: Objective = NextToken()) -> Peak:
    """The most bytes that a model's programs hold at once; arguments as for `costs`."""
    return Peak(peak_bytes(*_forward(model, batch, length)), peak_bytes(*_gradients(model, batch, length, objective)))


@dataclass(frozen=True)
class Growth:
    """fixed + linear * T + square * T^2, of a sequence of T tokens, or of a source and a target of T tokens each."""

    linear: float
    square: float
    fixed: float = 0

    def __add__(self, other: "Growth") -> "Growth":
        return Growth(self.linear + other.linear, self.square + other.square, self.fixed + other.fixed)


@dataclass(frozen=True)
class Complexity:
    """How the cost of a part grows with the length of a sequence.

    Attributes:
        compute: FLOPs of the forward pass.
        plain: bytes kept for the backward pass, the loss's apart, where attention holds all scores, as on `reference`.
        tiled: the same where it works in tiles, as on `blockwise` and the kernels (Dao et al., arXiv:2205.14135, theorem 1).
    """

    compute: Growth
    plain: Growth
    tiled: Growth

    def __add__(self, other: "Complexity") -> "Complexity":
        return Complexity(self.compute + other.compute, self.plain + other.plain, self.tiled + other.tiled)


def complexity(config: Any, *, length: int, **fields: Any) -> dict[Part, Complexity]:
    """How the cost of each part grows with T, from its costs at `length`, twice and three times that. What has no product and keeps nothing is left out.

    Source and target grow together, so that cross-attention's S x T scores count as T^2.

    Args:
        config: of a model.
        length: a number of tokens; max_length may be less.
        fields: of the model, such as `precision`.
    """
    lengths = (length, 2 * length, 3 * length)
    plain, tiled = (config.replace(max_length=3 * length).make(**{**fields, "backend": backend}) for backend in ("reference", "blockwise"))
    compute = [_by_part(config, flops(*_forward(plain, 1, n))) for n in lengths]
    kept = {model.backend: [_by_part(config, activation_bytes(*_prelogits(model, 1, n))) for n in lengths] for model in (plain, tiled)}

    def growth(part: Part, measured: list[collections.Counter[Part]]) -> Growth:
        once, twice, thrice = (counts[part] for counts in measured)
        linear, square = (8 * twice - 5 * once - 3 * thrice) / (2 * length), (once - 2 * twice + thrice) / (2 * length**2)
        return Growth(linear, square, 3 * once - 3 * twice + thrice)

    each = {part: Complexity(*(growth(part, measured) for measured in (compute, kept["reference"], kept["blockwise"]))) for part in parts(config)}
    nothing = Growth(0, 0)
    return {part: grows for part, grows in each.items() if grows != Complexity(nothing, nothing, nothing)}


def crossings(grows: Mapping[Part, Complexity]) -> dict[str, float]:
    """The lengths T from which on products that grow with T^2 cost more than the MLPs, and than all other products of the layers; empty where none grow so."""
    layers = [(part, grow.compute) for part, grow in grows.items() if part.group]
    square = sum(compute.square for _, compute in layers)
    linear = {
        "the MLPs": sum(compute.linear for part, compute in layers if isinstance(part.config, Mlp)),
        "all other products of the layers": sum(compute.linear for _, compute in layers),
    }
    return {name: n / square for name, n in linear.items() if square and n}


_Call: TypeAlias = tuple[Any, ...]  # a function and its arguments


def _forward(model: Any, batch: int, length: int) -> _Call:
    inputs = jax.eval_shape(lambda: model.config.example(batch, length))
    return model.apply, variable_shapes(model), *inputs


def _prelogits(model: Any, batch: int, length: int) -> _Call:
    _, variables, *inputs = _forward(model, batch, length)

    def total(variables: Any, key: Any, *inputs: Any) -> Any:
        x, _ = model.clone(training=True).apply(variables, *inputs, rngs={"dropout": key}, method="prelogits")
        return x.sum()

    return total, variables, jax.eval_shape(jax.random.key, 0), *inputs


def _loss(model: Any, batch: int, length: int, objective: Objective) -> _Call:
    training = model.clone(training=True)
    _, variables, *_ = _forward(model, batch, length)

    def loss(variables: Any, batch: Any, key: Any) -> Any:
        return objective(training, variables, batch, {"dropout": key}).total

    return loss, variables, jax.eval_shape(lambda: objective.example(batch, length)), jax.eval_shape(jax.random.key, 0)


def _gradients(model: Any, batch: int, length: int, objective: Objective) -> _Call:
    loss, *args = _loss(model, batch, length, objective)
    return jax.value_and_grad(loss), *args
