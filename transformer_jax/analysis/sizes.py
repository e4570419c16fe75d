"""Numbers of parameters, and bytes of a cache."""

import collections
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax

from transformer_jax.analysis.jaxprs import Path, bytes_of


def parameters(model: nn.Module, *inputs: Any) -> dict[Path, int]:
    """How many parameters each module has, by its path of names; nothing is initialised.

    Args:
        model: a linen module.
        inputs: what its `init` takes after the key: arrays, or anything with their shapes and dtypes.
    """
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    found: collections.Counter[Path] = collections.Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        found[tuple(key.key for key in path[:-1])] += leaf.size
    return dict(found)


@dataclass(frozen=True)
class CacheBytes:
    """Of one sequence.

    Attributes:
        per_token: bytes for each token that the cache has room for.
        fixed: bytes whatever the length.
        per_source: bytes for each token of the source, of an encoder-decoder: cross-attention's keys and values.
    """

    per_token: int
    fixed: int
    per_source: int = 0


def cache_bytes(model: Any) -> dict[str, CacheBytes]:
    """Bytes of what a model remembers of a sequence while it generates, by the names of the arrays ("key", "value", ...), all layers together.

    They are those of `model.init_cache`, evaluated in shapes alone at the longest lengths; a model without it has none.
    """
    if not hasattr(model, "init_cache"):
        return {}
    longest = model.config.max_length
    source = (longest,) if hasattr(model, "encode") else ()

    def each(*lengths: int) -> collections.Counter[str]:
        return _by_name(jax.eval_shape(lambda: model.init_cache(1, *lengths)))

    whole = each(longest, *source)
    per_token = whole - each(longest - 1, *source)
    per_source = whole - each(longest, longest - 1) if source else collections.Counter[str]()
    return {name: CacheBytes(per_token[name], n - longest * (per_token[name] + per_source[name]), per_source[name]) for name, n in whole.items()}


def _by_name(cache: Any) -> collections.Counter[str]:
    found: collections.Counter[str] = collections.Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(cache):
        names = [str(name) for key in path if (name := getattr(key, "key", getattr(key, "name", None))) is not None]
        found[names[-1] if names else "cache"] += bytes_of(leaf)
    return found
