"""The parts of a model, by the places of their configs: what costs are shown for."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

from transformer_jax.analysis.jaxprs import Path
from transformer_jax.config import Config
from transformer_jax.layers.base import Layer
from transformer_jax.layers.embedding import Embedding
from transformer_jax.layers.norm import Norm
from transformer_jax.layers.scores.base import Score
from transformer_jax.layers.stack import Group, Stack


@dataclass(frozen=True)
class Part:
    """A part of a model.

    Attributes:
        place: of its config: names of fields, and of a tuple's item its field and number, as `("stack", "groups_0", "sublayers_1", "layer")`.
        group: the place of the group that it lies in; `()` outside of groups.
        label: its kind. The norms of a group are one part, and so is what its sublayers are added to; their place is the group's.
        config: its own; None for those two.
    """

    place: Path
    group: Path
    label: str
    config: Config | None = None

    @property
    def name(self) -> str:
        """`stack 0.1 Dense` is the second sublayer of the first group."""
        numbers = ".".join(word.rpartition("_")[2] for word in self.place[1:] if self.group and word[-1].isdigit())
        return " ".join(filter(None, [*self.place[:1], numbers, self.label]))


def parts(config: Config) -> tuple[Part, ...]:
    """The parts of a model, in the order in which data flows."""
    each = ((place, part_of(config, place)) for place in _places(config, ()))
    return tuple(dict.fromkeys(part for place, part in each if part.place == place[: len(part.place)]))


def part_of(config: Config, path: Path) -> Part:
    """The part of a model to which a module belongs.

    Args:
        config: the model's.
        path: names of modules. Those that are no field of the config reached so far are passed over, and what lies outside of all fields belongs to the head:
            its product, which runs outside of modules, and a pooler.
    """
    model = config
    place: Path = ()
    group: Path = ()
    for name in path:
        if (child := children(config).get(name)) is None:
            continue
        config, place = child, (*place, name)
        if isinstance(config, Group):
            group = place
        elif group and isinstance(config, Norm):
            return Part(group, group, "norms")
        elif not any(isinstance(inner, (Layer, Group)) for inner in config.walk() if inner is not config):
            return Part(place, group, type(config).__name__, config)
    if group:
        return Part(group, group, "residual stream")
    head = children(model).get("head")
    return Part(("head",) if head else (), (), type(head or model).__name__, head or model)


def children(config: Config) -> dict[str, Config]:
    """The configs that one holds, by the names of their modules; embeddings and scores come first, then stacks, then heads."""
    found: dict[str, Config] = {}
    for field in fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        plural = field.name.removesuffix("s") + "s"  # the modules of a field `score` are scores_0, scores_1, ...
        items = {f"{plural}_{n}": item for n, item in enumerate(value)} if isinstance(value, tuple) else {field.name: value}
        found |= {name: item for name, item in items.items() if isinstance(item, Config)}
    return dict(sorted(found.items(), key=lambda item: (not isinstance(item[1], Embedding | Score), not isinstance(item[1], Stack))))


def _places(config: Config, place: Path) -> Iterator[Path]:
    for name, child in children(config).items():
        yield (*place, name)
        yield from _places(child, (*place, name))
