"""Families of published models: presets by name, and how their checkpoints are read and written."""

import difflib
import re
from typing import Any

from transformer_jax.models import ModelConfig
from transformer_jax.models.base import Model
from transformer_jax.zoo import (
    bart,
    bert,
    bloom,
    deepseek,
    falcon,
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    gpt_oss,
    llama,
    marian,
    mistral,
    mixtral,
    modernbert,
    olmo2,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    roberta,
    t5,
    transformer,
)
from transformer_jax.zoo.family import Family

FAMILIES: tuple[Family, ...] = (
    transformer.FAMILY, marian.FAMILY, bart.FAMILY, t5.FAMILY, bert.FAMILY, roberta.ROBERTA, roberta.XLM_ROBERTA, modernbert.FAMILY, gpt2.FAMILY,
    gpt_neox.FAMILY, bloom.FAMILY, falcon.FAMILY, llama.FAMILY, mistral.FAMILY, mixtral.FAMILY, qwen2.FAMILY, qwen3.FAMILY, qwen3_moe.FAMILY, gemma2.FAMILY,
    gemma3.FAMILY, olmo2.FAMILY, phi3.FAMILY, deepseek.V2, deepseek.V3, gpt_oss.FAMILY,
)  # fmt: skip


def names() -> list[str]:
    """The presets' names: those of their repositories, lower case, without owner, `meta-`, `-hf`, `-uncased` or version, where one suffices."""
    return [name for family in FAMILIES for name in family.presets]


def config(name: str) -> ModelConfig:
    """A preset's config.

    Raises:
        ValueError: there is none of that name; the nearest are named.
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected that of a preset, such as 'gpt2', received {name!r}")
    for family in FAMILIES:
        if name in family.presets:
            return family.read(family.presets[name])
    repository = re.sub("^meta-|-hf$|-uncased$", "", name.lower().rpartition("/")[2])
    near = difflib.get_close_matches(repository, names(), n=3, cutoff=0.3)
    nearest = f" (nearest: {', '.join(near)})" if near else ""
    raise ValueError(f"name: expected a preset, received {name!r}{nearest}; zoo.names() lists all")


def model(name_or_config: str | ModelConfig, **fields: Any) -> Model:
    """A model without parameters: `init` makes them. `fields` are those of its module after the first, such as `training` and `precision`."""
    if isinstance(name_or_config, ModelConfig):
        return name_or_config.make(**fields)
    chosen = config(name_or_config)
    return chosen.make(family=next(family.model_type for family in FAMILIES if name_or_config in family.presets), **fields)


__all__ = ["FAMILIES", "Family", "config", "model", "names"]
