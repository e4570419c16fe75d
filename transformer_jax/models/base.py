"""What models of all shapes share: their configs' base, their fields, and what is done to tokens before the first layer."""

from functools import lru_cache
from typing import Any, ClassVar, Self, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from pallas_kernels import masks
from pallas_kernels.flash.masks import Mask
from pallas_kernels.flash.request import as_mask
from transformer_jax.config import Config
from transformer_jax.layers.base import Build
from transformer_jax.layers.head import Head, Unembedding
from transformer_jax.layers.initialization import Initialization
from transformer_jax.layers.masks import both
from transformer_jax.layers.stack import Stack
from transformer_jax.precision import Precision
from transformer_jax.typing import Array, Hidden, Logits, Positions, Tokens, Valid


class ModelConfig(Config):
    """Open base of model configs.

    Attributes:
        vocab_size: None where the data decides.
        d_model: width of the residual stream.
        max_length: the longest sequence.
        head: what is made of the last hidden state.
        initialization: recipe for the parameters.
    """

    vocab_size: int | None
    d_model: int
    max_length: int
    head: Head
    initialization: Initialization

    def make(self, **fields: Any) -> "Model":
        """The model; `fields` are those of its module after the first, such as `training` and `precision`."""
        raise NotImplementedError(f"{type(self).__name__} must define make(**fields)")

    def filled_in(self, vocab_size: int, num_labels: int) -> Self:
        """With what the data decides in place of None.

        Raises:
            ValueError: a size is given and too small.
        """
        config = self
        if config.vocab_size is None:
            config = config.replace(vocab_size=vocab_size)
        elif config.vocab_size < vocab_size:
            raise ValueError(f"model.vocab_size: expected at least the data's {vocab_size}, received {config.vocab_size}; leave it None to have it filled in")
        labels = getattr(config.head, "num_labels", num_labels)
        if labels is None:
            config = config.replace(head=config.head.replace(num_labels=num_labels))
        elif labels < num_labels:
            raise ValueError(f"model.head.num_labels: expected at least the data's {num_labels}, received {labels}; leave it None to have it filled in")
        return config

    def example(self, batch: int = 1, length: int = 1) -> tuple[Tokens, ...]:
        """Inputs of the model's call, all tokens 0."""
        return (jnp.zeros((batch, length), jnp.int32),)

    def stacks(self) -> dict[str, Stack]:
        """The config's stacks by the names of their fields, which are also those of their modules and parameters."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Stack)}

    def _check(self) -> None:
        """Refuses here what cannot work at this width."""
        build = Build(self.d_model, max_length=self.max_length)
        for part in vars(self).values():
            if hasattr(part, "position"):
                part.position.make(build)
        for stack in self.stacks().values():
            for group in stack.groups:
                for sublayer in group.sublayers:
                    sublayer.layer.make(build)


class Model(nn.Module):
    """Base of models. `init(key, tokens)` gives `{"params": ...}`.

    Attributes:
        config: what it is made of.
        precision: dtypes of parameters and compute.
        training: whether dropout is on; then `apply` needs `rngs={"dropout": key}`.
        backend: of attention; see `pallas_kernels.explain`.
        stacked: whether a group's layers share arrays with a leading layer axis; see `unstacked`.
        unroll: repetitions of a group to one turn of its loop: 1 compiles fast whatever the depth, all of them (0) runs faster on CPU. Parameters, dropout and
            outputs are the same bit for bit, gradients to rounding.
        family: of the zoo, as which it was read, and is written again; "" for a model of one's own.
    """

    kind: ClassVar[type[ModelConfig]]
    config: Any
    precision: Precision = Precision()
    training: bool = False
    backend: str = "auto"
    stacked: bool = True
    unroll: int = 1
    family: str = ""

    def build(self, stack: Stack) -> Build:
        """What a stack's layers are built for."""
        c = self.config
        return Build(
            c.d_model, c.max_length, stack.depth, c.initialization, self.precision, self.training, self.backend, self.stacked, self.unroll
        )  # fmt: skip

    def _check_fields(self) -> None:
        for name, value, expected in (("config", self.config, self.kind), ("precision", self.precision, Precision)):
            if not isinstance(value, expected):
                raise TypeError(f"{type(self).__name__}.{name}: expected a {expected.__name__}, received {value!r}")
        if "float64" in (self.precision.params, self.precision.compute) and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
            raise ValueError(f"{type(self).__name__}.precision: expected no float64, received it; jax has it where JAX_ENABLE_X64=1 is in the environment")
        if self.config.vocab_size is None:
            way_out = "fill it in: config.replace(vocab_size=vocabulary.vocab_size)"
            raise ValueError(f"{self.kind.__name__}.vocab_size: expected a number, received None; {way_out}")


def logits(head: Head, x: Hidden, unembedding: Unembedding | None) -> Logits:
    """Of the next tokens; refuses a head that gives none."""
    if unembedding is None:
        raise ValueError(f"model.head: expected one that gives logits, such as LanguageModel(), to go on step by step, received {head}")
    return unembedding(x)


def variable_shapes(model: Model) -> dict[str, Any]:
    """Shapes and dtypes of a model's variables; nothing is initialised. The last models asked for are not traced again."""
    return cast(dict[str, Any], jax.tree.map(lambda leaf: leaf, _traced(model)))


@lru_cache(maxsize=8)
def _traced(model: Model) -> Any:
    return jax.eval_shape(model.init, jax.random.key(0), *model.config.example())


def prepared(
    tokens: Tokens, longest: int, name: str, *, positions: Positions | None, segment_ids: Array | None, valid: Valid | None, mask: Any,
    token_types: Tokens | None,
) -> tuple[Tokens, Positions | None, Mask | None]:  # fmt: skip
    """Checked tokens, their positions, and one mask of all that a call rules out. Of a side called `name`, options are called `name_valid` and so on."""
    check_tokens(tokens, longest, "max_length", name)
    prefix = "" if name == "tokens" else f"{name}_"
    try:
        mask = as_mask(mask)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{prefix}{error}") from None
    for option, given in (("positions", positions), ("segment_ids", segment_ids), ("valid", valid), ("token_types", token_types)):
        if given is not None and jnp.shape(given) != jnp.shape(tokens):
            raise ValueError(f"{prefix}{option}: expected the shape of {name}, {jnp.shape(tokens)}, received {jnp.shape(given)}")
    if positions is None and valid is not None:
        positions = count_valid(valid)
    if segment_ids is not None:
        mask = both(mask, masks.segments(segment_ids))
    if valid is not None:
        mask = both(mask, masks.valid(valid))
        tokens = jnp.where(valid, tokens, 0)  # padding may be any number
    return tokens, positions, mask


def count_valid(valid: Valid) -> Positions:
    """Positions `[B, T]` that count the valid tokens before each; padding repeats a neighbour's."""
    return jnp.maximum(jnp.cumsum(valid, -1, dtype=jnp.int32) - 1, 0)


def check_tokens(tokens: Any, longest: int, what: str, name: str = "tokens") -> None:
    """Refuses what is no `[B, T]` of integers with T at most `longest`."""
    if jnp.ndim(tokens) != 2 or not jnp.issubdtype(jnp.result_type(tokens), jnp.integer):
        raise ValueError(f"{name}: expected integers of shape [B, T], received {jnp.result_type(tokens)} {jnp.shape(tokens)}")
    if tokens.shape[1] > longest:
        raise ValueError(f"{name}: expected at most {what} = {longest} to a sequence, received {tokens.shape[1]}; cut it, or build with a larger one")


