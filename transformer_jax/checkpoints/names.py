"""Which of a folder's tensors are which of a family's, and whether all are there."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from transformer_jax.checkpoints.mapped import same
from transformer_jax.checkpoints.weights import Stored, Tensors
from transformer_jax.zoo.family import Family
from transformer_jax.zoo.stacks import one_by_one
from transformer_jax.zoo.tensors import Tensor

FLOATS = "float32", "bfloat16", "float16", "float64"


def canonical(stored: Iterable[str], family: Family) -> dict[str, str]:
    """The family's names of the tensors to those in the files."""
    names: dict[str, str] = {}
    prefixed = any(name.startswith(family.prefix) for name in stored)
    for name in stored:
        ours = name if prefixed or name in family.copies else family.prefix + name
        for pattern, replacement in family.renamed.items():
            ours = re.sub(pattern, replacement, ours)
        if ours in names:
            raise ValueError(f"tensors {names[ours]} and {name}: expected one of them, as both are {ours} of {family.name}, received two")
        names[ours] = name
    return names


def without_copies(names: Mapping[str, str], family: Family, values: Mapping[str, Any], weights: Tensors) -> dict[str, str]:
    """The names without tensors that are copies of others; where a head equals the embeddings, config.json decides whether it is one."""
    kernel, left = next(iter(family.copies), None), dict(names)
    for copy, original in family.copies.items():
        if copy == kernel and not values.get("tie_word_embeddings", True):
            continue
        if copy in left and original in left and same(weights.read(left[copy]), weights.read(left[original])):
            del left[copy]
    return left


def shown(names: Mapping[str, str], family: Family) -> dict[str, bool]:
    """What the tensors' names, less copies, say in place of config.json, which is not always right: whether the head is tied, and the family's further fields.

    A head that differs from the embeddings is not tied; one that is not there is.
    """
    tied = {"tie_word_embeddings": next(iter(family.copies)) not in names} if family.copies else {}
    return {**tied, **{field: any(name.startswith(start) for name in names) for field, start in family.shown.items()}}


def meant(tensors: Iterable[Tensor], params: Any, *, stacked: bool) -> list[Tensor]:
    """Those all of whose parts the model has, with their places in its layout."""
    placed = tensors if stacked else (replace(tensor, parts=tuple(map(one_by_one, tensor.parts))) for tensor in tensors)
    return [tensor for tensor in placed if all(array_at(params, part.path) is not None for part in tensor.parts)]


def array_at(params: Any, path: tuple[str, ...]) -> Any:
    """What is at a path, None where there is nothing."""
    for name in path:
        if name not in params:
            return None
        params = params[name]
    return params


def check(tensors: Iterable[Tensor], wanted: Any, stored: Mapping[str, Stored], family: Family, said: str, spare: Collection[str]) -> None:
    """Refuses a folder whose tensors are not just those that are wanted, in their shapes, and floats.

    Args:
        tensors: that the model has.
        wanted: shapes of its parameters.
        stored: the folder's tensors.
        family: which tensors are no parameters.
        said: where it is said which tensors these are, for messages.
        spare: further ones that may be left over.
    """
    tensors = list(tensors)
    held = {part.path for tensor in tensors for part in tensor.parts}
    if without := ["/".join(path) for path in flatten_dict(wanted) if path not in held]:
        what = f"received one with parameters that none of its tensors hold: {_few(sorted(without))}"
        raise ValueError(f"expected a model of {family.name} by {said}, {what}")
    expected = {t.name: t.shape([array_at(wanted, part.path).shape[len(part.index) :] for part in t.parts]) for t in tensors}
    dropped = {name for name in stored if name in spare or any(re.fullmatch(pattern, name) for pattern in family.dropped)}
    missing, over = sorted(set(expected) - set(stored)), sorted(set(stored) - set(expected) - dropped)
    if missing or over:
        what = "; ".join(f"{kind}: {_few(names)}" for kind, names in (("missing", missing), ("left over", over)) if names)
        raise ValueError(f"expected the tensors of {family.name} by {said}, received others ({what})")
    for name, shape in expected.items():
        if stored[name].shape != shape:
            raise ValueError(f"tensor {name}: expected shape {shape} by {said}, received {stored[name].shape}")
        if stored[name].dtype.name not in FLOATS:
            quantised = "; where it is quantised, config.json has a quantization_config"
            raise ValueError(f"tensor {name}: expected one of {', '.join(FLOATS)}, received {stored[name].dtype.name}{quantised}")


def check_variables(params: Any, wanted: Any) -> None:
    """Refuses parameters that are not those of a model, given the shapes of its own."""
    there, expected = ({jax.tree_util.keystr(p, simple=True, separator="/"): a for p, a in jax.tree.leaves_with_path(tree)} for tree in (params, wanted))
    for path in sorted(expected.keys() | there.keys()):
        want, have = (tree[path].shape if path in tree else "none" for tree in (expected, there))
        if want != have:
            raise ValueError(f"variables: expected those of the model, with {path} {want}, received {have}; initialise or load both together")
    dtypes = sorted({jnp.dtype(leaf.dtype).name for leaf in there.values()})
    if len(dtypes) > 1 or dtypes[0] not in FLOATS:
        raise ValueError(f"variables: expected parameters of one dtype out of {', '.join(FLOATS)}, received {', '.join(dtypes)}")


def _few(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
