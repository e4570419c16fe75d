"""Optimizers and schedules as configs over optax."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any

import jax
import optax

from transformer_jax.config import Config
from transformer_jax.layers.base import check_not_negative, check_positive, check_rate

Schedule_fn = Callable[[Any], Any]

_NOT_DECAYED = ("bias", "correction", "scale")


class Optimizer(Config):
    """Open base of optimizers. Gradients are clipped to `clip_norm` by their global norm first; 0 turns that off."""

    learning_rate: float
    clip_norm: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "learning_rate")
        names = {field.name for field in fields(self)}  # type: ignore[arg-type]
        check_not_negative(self, *names & {"clip_norm", "weight_decay"})
        for name in names & {"b1", "b2", "momentum"}:
            check_rate(self, name)

    def update(self, rate: Schedule_fn, decayed: Any) -> optax.GradientTransformation:
        """The rule, given the learning rate as a function of the step, and which parameters decay, as a tree of booleans."""
        raise NotImplementedError(f"{type(self).__name__} must define update(rate, decayed)")

    def make(self, rate: Schedule_fn, params: Any) -> optax.GradientTransformation:
        """Clipping and the rule, for these parameters."""
        clip = [optax.clip_by_global_norm(self.clip_norm)] if self.clip_norm else []
        return optax.chain(*clip, self.update(rate, decay_mask(params)))


@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101)."""

    learning_rate: float = 1e-3
    _: KW_ONLY
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0

    def update(self, rate: Schedule_fn, decayed: Any) -> optax.GradientTransformation:
        return optax.adamw(rate, self.b1, self.b2, self.eps, weight_decay=self.weight_decay, mask=decayed)


@dataclass(frozen=True)
class Lion(Optimizer):
    """The sign of a momentum (Chen et al., arXiv:2302.06675)."""

    learning_rate: float = 1e-4
    _: KW_ONLY
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 1.0
    clip_norm: float = 1.0

    def update(self, rate: Schedule_fn, decayed: Any) -> optax.GradientTransformation:
        return optax.lion(rate, self.b1, self.b2, weight_decay=self.weight_decay, mask=decayed)


@dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent with momentum."""

    learning_rate: float = 0.1
    _: KW_ONLY
    momentum: float = 0.9
    clip_norm: float = 1.0

    def update(self, rate: Schedule_fn, decayed: Any) -> optax.GradientTransformation:
        return optax.sgd(rate, self.momentum)


def decay_mask(params: Any) -> Any:
    """True for the parameters that weight decay belongs to: kernels and embeddings, not biases, routers' corrections, scales of norms, or arrays of scores."""

    def decays(path: Any, _: Any) -> bool:
        names = [str(getattr(part, "key", part)) for part in path]
        return names[-1] not in _NOT_DECAYED and not any(name.startswith("scores_") for name in names)

    return jax.tree_util.tree_map_with_path(decays, params)


class Schedule(Config):
    """Open base of learning-rate schedules."""

    def make(self, peak: float, steps: int) -> Schedule_fn:
        """The learning rate as a function of the step, from 0 to `steps` - 1."""
        raise NotImplementedError(f"{type(self).__name__} must define make(peak, steps)")


@dataclass(frozen=True)
class WarmupCosine(Schedule):
    """Up in a line over `warmup` steps, down in half a cosine to `final` times the peak (Loshchilov and Hutter, arXiv:1608.03983)."""

    warmup: int = 100
    _: KW_ONLY
    final: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "warmup", "final")

    def make(self, peak: float, steps: int) -> Schedule_fn:
        warmup = min(self.warmup, steps // 2)
        rate: Schedule_fn = optax.warmup_cosine_decay_schedule(peak / (warmup + 1), peak, warmup, max(steps, 1), peak * self.final)
        return rate


@dataclass(frozen=True)
class Constant(Schedule):
    """Up in a line over `warmup` steps, then flat."""

    warmup: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "warmup")

    def make(self, peak: float, steps: int) -> Schedule_fn:
        rate: Schedule_fn = optax.warmup_constant_schedule(peak / (self.warmup + 1), peak, self.warmup)
        return rate


@dataclass(frozen=True)
class InverseSqrt(Schedule):
    """peak * min(step / warmup, sqrt(warmup / step)) (arXiv:1706.03762, section 5.3)."""

    warmup: int = 4000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "warmup")

    def make(self, peak: float, steps: int) -> Schedule_fn:
        return lambda step: peak * jax.numpy.minimum((step + 1) / self.warmup, (self.warmup / (step + 1)) ** 0.5)
