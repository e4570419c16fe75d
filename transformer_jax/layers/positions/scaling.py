"""Scaling of rotary positions: how a model reads texts longer than those that it was first trained on."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.config import Config
from transformer_jax.layers.base import Build, check_not_negative, check_positive
from transformer_jax.ops.positions import frequencies, llama3, ntk, yarn


class RopeScaling(Config):
    """Open base of scalings: how fast the pairs of features turn, and how long they become."""

    def rates(self, features: int, theta: float, build: Build, dtype: Any) -> jax.Array:
        """Radians per position `[features / 2]`, of `dtype`, where `features` of a head turn."""
        raise NotImplementedError(f"{type(self).__name__} must define rates(features, theta, build, dtype)")

    def amplitude(self, build: Build) -> float:
        """Factor on cosines and sines, so that its square is one on what the turning features add to q.k."""
        return 1.0


@dataclass(frozen=True)
class NoScaling(RopeScaling):
    """theta^(-2i/R), as in training."""

    def rates(self, features: int, theta: float, build: Build, dtype: Any) -> jax.Array:
        return frequencies(features, theta, dtype)


@dataclass(frozen=True)
class LinearScaling(RopeScaling):
    """Positions divided by `factor` (Chen et al., arXiv:2306.15595, section 2.3)."""

    factor: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_at_least(self, 1, "factor")

    def rates(self, features: int, theta: float, build: Build, dtype: Any) -> jax.Array:
        return frequencies(features, theta, dtype) / self.factor


@dataclass(frozen=True)
class NtkScaling(RopeScaling):
    """theta * factor^(R / (R - 2)) in theta's place: the slowest pair turns `factor` times slower, the fastest as before (arXiv:2309.00071, section 3.1)."""

    factor: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_at_least(self, 1, "factor")

    def rates(self, features: int, theta: float, build: Build, dtype: Any) -> jax.Array:
        return ntk(features, theta, factor=self.factor, dtype=dtype)


@dataclass(frozen=True)
class YarnScaling(RopeScaling):
    """YaRN: fast pairs turn as before, slow ones `factor` times slower; cosines and sines grow (Peng et al., arXiv:2309.00071, sections 3.2 and 3.4).

    Attributes:
        factor: by which texts grow.
        original_length: the longest text of the first training.
        beta_fast, beta_slow: pairs that turn more often than beta_fast in the original length are fast, those that turn less often than beta_slow are slow.
        truncate: whether the ramp between fast and slow starts and ends at whole pairs (gpt-oss: False).
        attention_factor: on cosines and sines; m(mscale) / m(mscale_all_dim) unless given, with m(a) = 1 + a * ln(factor) / 10.
        mscale, mscale_all_dim: DeepSeek sets both, and the scale of its attention is m(mscale_all_dim)^2 times the usual one.
    """

    factor: float
    _: KW_ONLY
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float = 1.0
    mscale_all_dim: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_at_least(self, 1, "factor")
        check_positive(self, "original_length", "beta_slow", "attention_factor")
        check_not_negative(self, "mscale", "mscale_all_dim")
        if not self.beta_fast > self.beta_slow:
            raise ValueError(f"YarnScaling.beta_fast: expected more than beta_slow = {self.beta_slow}, received {self.beta_fast}")

    def rates(self, features: int, theta: float, build: Build, dtype: Any) -> jax.Array:
        return yarn(
            features, theta, factor=self.factor, original_length=self.original_length, beta_fast=self.beta_fast, beta_slow=self.beta_slow,
            truncate=self.truncate, dtype=dtype,
        )  # fmt: skip

    def amplitude(self, build: Build) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        above, below = (1 + 0.1 * a * math.log(self.factor) for a in (self.mscale, self.mscale_all_dim))
        return above / below


@dataclass(frozen=True)
class LongRopeScaling(RopeScaling):
    """LongRoPE: each pair of features turns slower by a factor of its own, found by search (Ding et al., arXiv:2402.13753, section 3; Phi-3).

    The long factors serve a model whose max_length is beyond `original_length`, the short ones every other. So the choice is one of the model and not of a
    text: keys in a cache never change. Phi-3's release chooses for each call; what it computes for short texts is the model with max_length =
    original_length, and `factor` given.

    Attributes:
        short_factors, long_factors: one for each pair of features that turn.
        original_length: the longest text of the first training.
        factor: by which texts grow; max_length / original_length unless given.
        attention_factor: on cosines and sines, whichever factors serve; sqrt(1 + ln(factor) / ln(original_length)) unless given.
    """

    short_factors: tuple[float, ...]
    _: KW_ONLY
    long_factors: tuple[float, ...]
    original_length: int
    factor: float | None = None
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_at_least(self, 2, "original_length")
        _check_at_least(self, 1, "factor")
        check_positive(self, "attention_factor")
        for name in ("short_factors", "long_factors"):
            if not all(factor > 0 for factor in getattr(self, name)):
                raise ValueError(f"LongRopeScaling.{name}: expected numbers above 0, received {getattr(self, name)}")

    def rates(self, features: int, theta: float, build: Build, dtype: Any) -> jax.Array:
        name = "long_factors" if build.max_length > self.original_length else "short_factors"
        factors = getattr(self, name)
        if len(factors) != features // 2:
            raise ValueError(f"LongRopeScaling.{name}: expected {features // 2}, one for each pair of features that turn, received {len(factors)}")
        return frequencies(features, theta, dtype) / jnp.asarray(factors, dtype)

    def amplitude(self, build: Build) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        factor = build.max_length / self.original_length if self.factor is None else self.factor
        return math.sqrt(1 + math.log(max(factor, 1)) / math.log(self.original_length))


@dataclass(frozen=True)
class Llama3Scaling(RopeScaling):
    """Fast pairs turn as before, slow ones `factor` times slower (Llama 3.1, arXiv:2407.21783, released code).

    Attributes:
        factor: by which slow pairs slow down.
        original_length: the longest text of the first training.
        low_freq_factor, high_freq_factor: pairs that turn less often than the low one in the original length are slow, those that turn more often than the
            high one are fast.
    """

    factor: float
    _: KW_ONLY
    original_length: int
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_at_least(self, 1, "factor")
        check_positive(self, "original_length", "low_freq_factor")
        if not self.high_freq_factor > self.low_freq_factor:
            raise ValueError(f"Llama3Scaling.high_freq_factor: expected more than low_freq_factor = {self.low_freq_factor}, received {self.high_freq_factor}")

    def rates(self, features: int, theta: float, build: Build, dtype: Any) -> jax.Array:
        return llama3(
            features, theta, factor=self.factor, low_freq_factor=self.low_freq_factor, high_freq_factor=self.high_freq_factor,
            original_length=self.original_length, dtype=dtype,
        )  # fmt: skip


def _check_at_least(config: Config, least: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= least:  # NaN too
            raise ValueError(f"{type(config).__name__}.{name}: expected at least {least}, received {value}")
