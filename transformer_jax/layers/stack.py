"""Stacks of residual sublayers: groups, each repeated by one scan over parameters stacked on axis 0."""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import flax.linen as nn
import jax

from transformer_jax.config import Config
from transformer_jax.layers.base import Build, Context, Mixer, check_positive
from transformer_jax.layers.norm import NoNorm, Norm
from transformer_jax.layers.residual import Residual
from transformer_jax.layers.scores.base import Score
from transformer_jax.typing import Hidden

Remat = Literal["nothing", "products", "everything"]

_SAVEABLE: dict[str, Any] = {
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "everything": jax.checkpoint_policies.nothing_saveable,
}


@dataclass(frozen=True)
class Group(Config):
    """Sublayers, in order, repeated: `Group(12, (attention, mlp))`.

    Attributes:
        repeat: how often.
        sublayers: of one repetition.
        share: whether all repetitions have the same parameters (ALBERT, arXiv:1909.11942, section 3.1).
        remat: what the backward pass computes again in place of keeping it: nothing, all but matrix products, or everything.
    """

    repeat: int
    sublayers: tuple[Residual, ...]
    _: KW_ONLY
    share: bool = False
    remat: Remat = "nothing"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "repeat")
        if not self.sublayers:
            raise ValueError("Group.sublayers: expected at least one, received none")


@dataclass(frozen=True)
class Stack(Config):
    """Groups one after the other. A sandwich (arXiv:1911.03864) is `Stack((Group(k, (attn,)), Group(n - k, (attn, mlp)), Group(k, (mlp,))))`.

    Attributes:
        groups: of residual sublayers.
        final_norm: of the last hidden state.
        score: made once and handed to every self-attention, before its own (T5's table).
    """

    groups: tuple[Group, ...]
    _: KW_ONLY
    final_norm: Norm = NoNorm()
    score: tuple[Score, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.groups:
            raise ValueError("Stack.groups: expected at least one, received none")
        if self.score and len(self._head_counts()) != 1:
            raise ValueError(f"Stack.score: expected mixers with one and the same num_heads, received {sorted(self._head_counts()) or 'none'}")

    @property
    def depth(self) -> int:
        """Residual sublayers, repetitions counted."""
        return sum(group.repeat * len(group.sublayers) for group in self.groups)

    @property
    def num_heads(self) -> int:
        """Of the mixers, for scores that they share."""
        return self._head_counts().pop()

    def _head_counts(self) -> set[int]:
        return {part.num_heads for group in self.groups for part in group.walk() if isinstance(part, Mixer) and hasattr(part, "num_heads")}

    def make(self, build: Build) -> nn.Module:
        return StackModule(self, build)

    def init_cache(self, build: Build, batch: int, length: int, memory_length: int = 0) -> Any:
        """Per group a tuple of its sublayers' caches, stacked on axis 0; in an unstacked model a tuple of those, one per repetition."""

        def one(group: Group) -> Any:
            layers = tuple(s.layer.init_cache(build, batch, length, memory_length) for s in group.sublayers)
            if not build.stacked:
                return (layers,) * group.repeat
            return jax.tree.map(lambda a: jax.numpy.broadcast_to(a, (group.repeat, *a.shape)), layers)

        return tuple(one(group) for group in self.groups)


class StackModule(nn.Module):
    config: Stack
    build: Build

    def setup(self) -> None:
        c = self.config
        self.groups = [GroupModule(group, self.build) for group in c.groups]
        self.final_norm = c.final_norm.make(self.build)
        self.scores = [score.make(self.build, c.num_heads) for score in c.score]

    def __call__(self, x: Hidden, context: Context, caches: Any = None) -> tuple[Hidden, Any]:
        context = context.replace(score=(*context.score, *(score() for score in self.scores)))
        new = []
        for group, cache in zip(self.groups, caches or (None,) * len(self.groups)):
            x, cache = group(x, context, cache)
            new.append(cache)
        return self.final_norm(x), None if caches is None else tuple(new)


class GroupModule(nn.Module):
    config: Group
    build: Build

    def setup(self) -> None:
        self.layers = self._layers()

    def _layers(self) -> Any:
        c, build = self.config, self.build
        body = RepetitionModule if c.remat == "nothing" else nn.remat(RepetitionModule, policy=_SAVEABLE[c.remat], prevent_cse=not build.stacked)
        if build.stacked:
            scanned = nn.scan(
                body,
                variable_axes={"intermediates": 0, "losses": 0, "metrics": 0, **({} if c.share else {"params": 0})},
                variable_broadcast="params" if c.share else False,
                split_rngs={"params": not c.share, "dropout": True},
                in_axes=(nn.broadcast, 0),
                length=c.repeat,
                # Unrolled, XLA would find what is computed again and keep it after all.
                unroll=min(build.unroll or c.repeat, c.repeat) if c.remat == "nothing" else 1,
            )
            return scanned(c, build)
        return body(c, build) if c.share else [body(c, build) for _ in range(c.repeat)]

    def __call__(self, x: Hidden, context: Context, cache: Any = None) -> tuple[Hidden, Any]:
        if self.build.stacked:
            x, cache = self.layers(x, context, cache)
            return x, cache
        new = []
        for layer, mine in zip(self._each(), cache or (None,) * self.config.repeat):
            x, mine = layer(x, context, mine)
            new.append(mine)
        return x, None if cache is None else tuple(new)

    def _each(self) -> Iterator[nn.Module]:
        yield from (self.layers,) * self.config.repeat if self.config.share else self.layers


class RepetitionModule(nn.Module):
    """One repetition of a group."""

    config: Group
    build: Build

    def setup(self) -> None:
        self.sublayers = [sublayer.make(self.build) for sublayer in self.config.sublayers]

    def __call__(self, x: Hidden, context: Context, cache: Any) -> tuple[Hidden, Any]:
        new = []
        for sublayer, mine in zip(self.sublayers, cache or (None,) * len(self.sublayers)):
            x, mine = sublayer(x, context, mine)
            new.append(mine)
        self.sow("intermediates", "residual", x)
        return x, None if cache is None else tuple(new)
