"""Arrays of a model from a checkpoint's tensors."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Sharding

from transformer_jax.checkpoints.mapped import copy
from transformer_jax.zoo.tensors import Shape, Tensor

Names = tuple[str, ...]  # of a parameter: the path to it
Box = tuple[tuple[int, int], ...]  # first and last + 1, for each axis

ALIGNMENT = 64  # bytes; an array that lies so becomes jax's on a CPU as it is


def load(
    tensors: Iterable[Tensor], wanted: Any, read: Callable[[str], np.ndarray], sharding: Sharding | Callable[[Names, Shape], Sharding] | None = None
) -> Any:
    """The parameters.

    Arrays are made one at a time, and together only where a tensor holds several of them; each tensor is read once, converted piece by piece and let go.
    So a host holds its parameters, or its devices' shares, and little more: on a CPU what is filled becomes the array, elsewhere it goes once it is sent.

    Args:
        tensors: that together hold every parameter.
        wanted: shapes and dtypes of the parameters.
        read: gives a tensor by its name. Those that no device of this host needs are not asked for.
        sharding: of all parameters, or of each, given its path and shape; the default device unless given.

    Raises:
        ValueError: the tensors leave a parameter open or hold it twice; a sharding cuts an array in unequal parts.
    """
    flat = flatten_dict(wanted)
    arrays: dict[Names, jax.Array] = {}
    tensors = list(tensors)
    _check(tensors, flat)
    for paths, together in _groups(tensors):
        host = {path: _Host(path, flat[path], sharding(path, flat[path].shape) if callable(sharding) else sharding) for path in paths}
        for tensor in together:
            if any(host[part.path].wants(part.index) for part in tensor.parts):
                pieces = tensor.split(read(tensor.name), [flat[part.path].shape[len(part.index) :] for part in tensor.parts])
                for part, piece in zip(tensor.parts, pieces):
                    host[part.path].fill(part.index, piece)
        for path in paths:
            arrays[path] = host.pop(path).array()
    return unflatten_dict({path: arrays[path] for path in flat})


def _check(tensors: list[Tensor], flat: dict[Names, Any]) -> None:
    seen: dict[Names, set[tuple[int, ...]]] = {path: set() for path in flat}
    numbers = dict.fromkeys(flat, 0)
    for part in (part for tensor in tensors for part in tensor.parts):
        if part.index in seen[part.path]:
            raise ValueError(f"{'/'.join(part.path)}{list(part.index)}: expected one tensor that holds it, received two")
        seen[part.path].add(part.index)
        numbers[part.path] += math.prod(flat[part.path].shape[len(part.index) :])
    for path, leaf in flat.items():
        if numbers[path] != math.prod(leaf.shape):
            raise ValueError(f"{'/'.join(path)}: expected tensors for its {math.prod(leaf.shape)} numbers, received tensors for {numbers[path]}")


def _groups(tensors: list[Tensor]) -> list[tuple[list[Names], list[Tensor]]]:
    """The fewest arrays that can be made together, with their tensors."""
    groups: dict[Names, tuple[list[Names], list[Tensor]]] = {}
    for tensor in tensors:
        first, *others = (groups.setdefault(part.path, ([part.path], [])) for part in tensor.parts)
        for other in others:
            if other is not first:
                first[0].extend(other[0])
                first[1].extend(other[1])
                groups.update(dict.fromkeys(other[0], first))
        first[1].append(tensor)
    return list({id(group): group for group in groups.values()}.values())


class _Host:
    """A parameter's numbers on this host: a numpy array for each different share that its devices have."""

    def __init__(self, path: Names, leaf: Any, sharding: Sharding | None) -> None:
        self.shape, self.dtype, self.sharding = leaf.shape, leaf.dtype, sharding
        whole: Iterable[Any] = [tuple(slice(0, n) for n in leaf.shape)]
        if sharding is not None:
            try:
                whole = sharding.addressable_devices_indices_map(leaf.shape).values()
            except ValueError as error:
                name = "/".join(path)
                raise ValueError(f"{name}: expected a sharding that cuts {leaf.shape} into equal parts, received {sharding} ({error})") from error
        self.shares = {box: _aligned(tuple(b - a for a, b in box), leaf.dtype) for box in {self._box(index) for index in whole}}

    def wants(self, index: tuple[int, ...]) -> bool:
        """Whether a share has numbers at an index of the leading axes."""
        return any(self._within(box, index) for box in self.shares)

    def fill(self, index: tuple[int, ...], piece: np.ndarray) -> None:
        """Takes what the shares have of the numbers at an index of the leading axes."""
        for box, share in self.shares.items():
            if self._within(box, index):
                at = tuple(n - start for n, (start, _) in zip(index, box))
                inside = tuple(slice(*ends) for ends in box[len(index) :])
                copy(share[at] if at else share, piece[inside])

    def array(self) -> jax.Array:
        """jax's array of them."""
        if self.sharding is None:
            (share,) = self.shares.values()
            array = jax.device_put(share)
        else:
            array = jax.make_array_from_callback(self.shape, self.sharding, lambda index: self.shares[self._box(index)], dtype=self.dtype)
        return array.block_until_ready()

    def _box(self, index: Any) -> Box:
        return tuple(part.indices(n)[:2] for part, n in zip(index, self.shape))

    @staticmethod
    def _within(box: Box, index: tuple[int, ...]) -> bool:
        return all(start <= n < stop for n, (start, stop) in zip(index, box))


def _aligned(shape: Shape, dtype: Any) -> np.ndarray:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
