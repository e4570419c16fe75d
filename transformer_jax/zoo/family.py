"""What a family of published models is: presets, and how its files say what ours do."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, TypeVar, cast

from transformer_jax.config import Config, differences, nearest
from transformer_jax.layers import Head, LongRopeScaling, NoHead, NormalInit, SentenceEmbedding, Stack
from transformer_jax.layers.mixers.attention import MultiHead
from transformer_jax.models import ModelConfig
from transformer_jax.zoo.heads import head_settings
from transformer_jax.zoo.ignored import IGNORED
from transformer_jax.zoo.settings import Settings
from transformer_jax.zoo.stacks import flat
from transformer_jax.zoo.tensors import Tensor

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Family:
    """A family.

    Attributes:
        name: of it, for people.
        paper: where it was published.
        unusual: what sets it apart from others of its shape.
        model_type: of its config.json.
        architectures: the classes whose checkpoints it reads, with the heads that they have; the first is that of the presets.
        prefix: of the names of all tensors but the head's, left out in files that were written from the model without its head.
        config: from the fields of a config.json to ours.
        settings: the reverse, the fields of a config.json; None for a model that is none of the family.
        tensors: of a config, ours and theirs; those with parts that the model has not are not meant.
        presets: by name, what the published config.json says.
        ignored: fields of a config.json that need not be read, and why.
        dropped: regular expressions for names of tensors that a model may be without, and why: what are no parameters, and parts that only some heads use.
        renamed: regular expressions for names that older files have, and what takes their place.
        copies: names of tensors that may be stored beside another of which they are copies; first the head's kernel, where it can be tied, and the embeddings.
        shown: fields of a config.json that are true where there are certain tensors, whatever the file says, and how the names of these begin.
    """

    name: str
    _: KW_ONLY
    paper: str
    unusual: str
    model_type: str
    architectures: Mapping[str, type[Head]]
    prefix: str
    config: Callable[[Settings], ModelConfig]
    settings: Callable[[Any], dict[str, Any] | None]
    tensors: Callable[[Any], Iterable[Tensor]]
    presets: Mapping[str, Mapping[str, Any]]
    ignored: Mapping[str, str] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    shown: Mapping[str, str] = field(default_factory=dict)

    def read(self, values: Mapping[str, Any], *, head: Head | None = None) -> ModelConfig:
        """Our config of what a config.json says.

        Args:
            values: its fields.
            head: in place of its own; what else the model has is then what the class with such a head has, where there is one.

        Raises:
            ValueError: a field is missing, or there is one that nobody knows. NotImplementedError: one has a value that the model cannot express.
        """
        named = self._named(values.get("architectures"))
        config = self._config(values, named)
        if head is None:
            return config
        kind = NoHead if isinstance(head, SentenceEmbedding) else type(head)
        others = [name for name, other in self.architectures.items() if other is kind]
        if others and self.architectures[named] is not kind:
            other = self._config(values, others[0])
            config = other if type(other) is type(config) else config
        return config.replace(head=head)

    def _config(self, values: Mapping[str, Any], architecture: str) -> ModelConfig:
        """Of a class."""
        told = {"model_type": self.model_type, **({"architectures": [architecture]} if "architectures" in values else {})}
        settings = Settings({**values, **told}, self.name, self.architectures[architecture])
        try:
            config = self.config(settings)
        except (AttributeError, IndexError, KeyError, TypeError, ZeroDivisionError) as error:
            raise ValueError(f"config.json: expected fields of the types and sizes that {self.name} has, received one that is not: {error}") from error
        if unread := settings.unread({*IGNORED, *self.ignored}):
            what = ", ".join(f"{name} = {values[name]!r}{nearest(name, settings.known)}" for name in unread)
            raise ValueError(f"config.json: expected fields that {self.name} is known to have, received {what}; take out what does not change the model")
        return config

    def write(self, config: ModelConfig) -> dict[str, Any] | None:
        """The fields of a config.json that says what ours says, the reverse of `read`; None where none does."""
        return self._written(config)[0]

    def misfit(self, config: ModelConfig) -> list[str]:
        """Why none does: what would be read in its place."""
        return self._written(config)[1]

    def misread(self, values: Mapping[str, Any], config: ModelConfig) -> list[str]:
        """What reading the fields of a config.json gives in place of a config; nothing where they say the same."""
        try:
            return differences(without_training(_headless(config)), without_training(self.read(values)))
        except (NotImplementedError, ValueError) as error:
            return [str(error)]

    def _named(self, classes: Any) -> str:
        """The class that a config.json names; the presets' where it names none."""
        classes = classes or next(iter(self.architectures))
        one = classes[0] if isinstance(classes, list | tuple) and len(classes) == 1 else classes
        if not isinstance(one, str) or one not in self.architectures:
            received = ", ".join(map(str, one)) if isinstance(one, list | tuple) else str(one)
            expected = f"expected one of {', '.join(self.architectures)} for {self.name}"
            raise NotImplementedError(f"config.json: architectures: {expected}, received {received}{nearest(received, self.architectures)}")
        return one

    def _written(self, config: ModelConfig) -> tuple[dict[str, Any] | None, list[str]]:
        config = _headless(config)
        names = [name for name, head in self.architectures.items() if head is type(config.head)]
        try:
            values = self.settings(config) if names else None
        except NotImplementedError as error:  # what no config.json can say
            return None, [str(error)]
        if values is None:
            return None, [f"{type(config).__name__} of another shape"]
        values = {"architectures": names[:1], "model_type": self.model_type, **head_settings(config.head), **values}
        wrong = self.misread(values, config)
        return (None, wrong) if wrong else (values, [])


def _headless(config: ModelConfig) -> ModelConfig:
    """Of vectors of sentences config.json knows nothing."""
    return config.replace(head=NoHead()) if isinstance(config.head, SentenceEmbedding) else config


_TRAINING: dict[str, Any] = {"dropout": 0.0, "remat": "nothing", "initialization": NormalInit(), "load_balance_loss": 0.0, "z_loss": 0.0}


def without_training(config: C, d_model: int = 0, max_length: int = 1) -> C:
    """A config less what is of no account once a model is trained: first values, dropout, what the backward pass keeps, how layers are grouped.

    What is derived from other fields is filled in; `d_model` and `max_length` are those of the config around this one.
    """
    changes: dict[str, Any] = {}
    d_model, max_length = getattr(config, "d_model", d_model), getattr(config, "max_length", max_length)
    for f in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, f.name)
        if f.name in _TRAINING:
            value = _TRAINING[f.name]
        elif isinstance(value, Config):
            value = without_training(value, d_model, max_length)
        elif isinstance(value, tuple):
            value = tuple(without_training(item, d_model, max_length) if isinstance(item, Config) else item for item in value)
        changes[f.name] = value
    plain = config.replace(**{**changes, **_derived(config, d_model, max_length)})
    return cast(C, flat(plain)) if isinstance(plain, Stack) else plain


def _derived(config: Config, d_model: int, max_length: int) -> dict[str, Any]:
    """What attention and LongRoPE would derive where it is not given."""
    if isinstance(config, LongRopeScaling):
        return {"factor": config.factor or max(max_length / config.original_length, 1.0)}
    if not isinstance(config, MultiHead):
        return {}
    head_dim = config.head_dim or d_model // config.num_heads
    return {"num_kv_heads": config.kv_heads, "head_dim": head_dim, "scale": head_dim**-0.5 if config.scale is None else config.scale}
