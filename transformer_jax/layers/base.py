"""What every layer is told: once when it is built (`Build`), and at each call (`Context`)."""

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from pallas_kernels import Dropout
from pallas_kernels.flash.masks import Mask
from pallas_kernels.flash.scores import Score
from transformer_jax.config import Config, nearest
from transformer_jax.layers.initialization import Initialization, NormalInit, Role
from transformer_jax.ops.activations import ACTIVATIONS
from transformer_jax.ops.linear import project
from transformer_jax.precision import Precision
from transformer_jax.typing import Array, Hidden, Positions, Valid


@dataclass(frozen=True)
class Build:
    """What modules are built for. `Attention(8, mask=Causal()).make(Build(d_model=512))` is a module to use anywhere.

    Attributes:
        d_model: width of the residual stream.
        max_length: the longest sequence, for tables of positions and caches.
        depth: residual sublayers in the whole stack, for initialisations that depend on it.
        initialization: recipe for the parameters.
        precision: dtypes.
        training: whether dropout is on.
        backend: of attention; "reference" is that of experts' products too.
        stacked: whether the layers of a group share arrays with a leading layer axis.
        unroll: repetitions of a group to one turn of its loop; 0 for all.
    """

    d_model: int
    max_length: int = 2048
    depth: int = 1
    initialization: Initialization = NormalInit()
    precision: Precision = Precision()
    training: bool = False
    backend: str = "auto"
    stacked: bool = True
    unroll: int = 1


class Context(struct.PyTreeNode):
    """What all layers share in one call, broadcast over the layers.

    Attributes:
        positions: of the tokens, `[B, T]`; None for 0, 1, 2, ...
        mask: what the call itself rules out (padding, other segments), beside each layer's own mask.
        valid: `[B, T]`, False at padding, for a mixer that looks at no mask; None where all are valid.
        segment_ids: `[B, T]`, likewise; None for one segment.
        score: the stack's scores, for every self-attention.
        kv_positions: of the slots of a cache, `[B, S]`; None without one.
        index: the first slot to write, a scalar; None without a cache.
        memory: what cross-attention looks at, `[B, S, D]`; None where there is none, or where a cache has it.
        memory_mask: what the call rules out of the memory.
    """

    positions: Positions | None = None
    mask: Mask | None = None
    valid: Valid | None = None
    segment_ids: Array | None = None
    score: tuple[Score, ...] = ()
    kv_positions: Positions | None = None
    index: jax.Array | None = None
    memory: Hidden | None = None
    memory_mask: Mask | None = None


def token_positions(positions: Positions | None, x: jax.Array) -> jax.Array:
    """The positions `[B, T]`, or 0, 1, 2, ... as `[1, T]` for an x `[B, T, ...]`."""
    return jnp.arange(x.shape[1], dtype=jnp.int32)[None] if positions is None else positions


class Layer(Config):
    """Open base of what a residual sublayer can hold: a mixer, an MLP, or several in parallel."""

    def make(self, build: Build) -> nn.Module:
        """A linen module with `__call__(x, context) -> y`, and `step(x, context, cache) -> (y, cache)` if it is to generate text."""
        raise NotImplementedError(f"{type(self).__name__} must define make(build)")

    def init_cache(self, build: Build, batch: int, length: int, memory_length: int = 0) -> Any:
        """What the layer remembers of up to `length` earlier tokens, and of a memory, empty: a pytree of arrays whose first axis is the batch."""
        return ()


class Mixer(Layer):
    """Open base of what moves information between positions."""


class Mlp(Layer):
    """Open base of what works on each position alone."""


class MixerModule(nn.Module):
    """Base for the modules of mixers: fields `config` and `build`."""

    config: Any
    build: Build

    def step(self, x: Hidden, context: Context, cache: Any) -> tuple[Hidden, Any]:
        """The next tokens' output `[B, T, D]`, given and returning what is remembered of earlier ones."""
        raise NotImplementedError(f"{type(self).__name__} has no step(x, context, cache), which generating needs, with {type(self.config).__name__}.init_cache")


class MlpModule(nn.Module):
    """Base for the modules of MLPs: fields `config` and `build`. One has nothing to remember."""

    config: Any
    build: Build

    def step(self, x: Hidden, context: Context, cache: Any) -> tuple[Hidden, Any]:
        return self(x, context), cache


class Linear(nn.Module):
    """x.kernel + bias: `[..., *inputs]` to `[..., *outputs]`, by the build's initialisation and precision."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    role: Role
    build: Build
    bias: bool = False

    def setup(self) -> None:
        fan_in, fan_out = math.prod(self.inputs), math.prod(self.outputs)
        dtype = jnp.dtype(self.build.precision.params)
        init = self.build.initialization.kernel(self.role, fan_in, fan_out, self.build.depth)
        self.kernel = self.param("kernel", init, (*self.inputs, *self.outputs), dtype)
        self.shift = self.param("bias", nn.initializers.zeros, self.outputs, dtype) if self.bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        return project(x, self.kernel, self.shift, axes=len(self.inputs))


def attention_dropout(module: nn.Module, rate: float, training: bool) -> Dropout | None:
    """Dropout of attention's probabilities with a seed from the module's own stream, or None."""
    if not training or rate == 0:
        return None
    return Dropout(rate, jax.random.bits(module.make_rng("dropout"), (), jnp.uint32))


def check_rate(config: Config, name: str) -> None:
    """Refuses a dropout rate that is no probability below 1."""
    rate = getattr(config, name)
    if not 0 <= rate < 1:
        raise ValueError(f"{type(config).__name__}.{name}: expected a rate in [0, 1), received {rate}")


def check_positive(config: Config, *names: str) -> None:
    """Refuses counts and sizes below 1."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > 0:  # NaN too
            raise ValueError(f"{type(config).__name__}.{name}: expected more than 0, received {value}")


def check_not_negative(config: Config, *names: str) -> None:
    """Refuses numbers below 0."""
    for name in names:
        value = getattr(config, name)
        if not value >= 0:
            raise ValueError(f"{type(config).__name__}.{name}: expected at least 0, received {value}")


def check_activation(config: Config, name: str) -> None:
    """Refuses an activation that there is not."""
    if name not in ACTIVATIONS:
        raise ValueError(f"{type(config).__name__}.activation: expected one of {', '.join(ACTIVATIONS)}, received {name!r}{nearest(name, ACTIVATIONS)}")
