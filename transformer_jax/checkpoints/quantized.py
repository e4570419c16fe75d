"""Quantised checkpoints: numbers of 8 or 4 bits and their scales, as the plain tensors that they stand for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from transformer_jax.checkpoints.weights import Stored, Tensors, WeightsError

Shape = tuple[int, ...]

ROWS = 64  # of numbers that are worked out in one go, so that they stay in a core's cache


class Scheme(Protocol):
    """How numbers and scales make a tensor. The numbers have its name with `numbers` behind, the scales with `scales`; those with `dropped` are of no use."""

    numbers: str
    scales: str
    dropped: str
    packed: str  # dtype of the numbers, which mean nothing without their scales
    result: str  # dtype of the tensor

    def shape(self, numbers: Shape, scales: Shape) -> Shape | None:
        """Of the tensor; None for shapes that do not fit each other."""

    def values(self, numbers: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """The tensor."""


@dataclass(frozen=True)
class Fp8:
    """`weight[..., r, c] * weight_scale_inv[..., r // rows, c // columns]` in float32 (DeepSeek-V3, arXiv:2412.19437, section 3.3).

    Attributes:
        block: its rows and columns, those at the ends being smaller where they must; None for one scale a tensor.
    """

    block: tuple[int, int] | None

    numbers = ""
    scales = "_scale_inv"
    dropped = ".activation_scale"  # what its inputs were rounded to; they are not rounded here
    packed = "float8_e4m3fn"
    result = "float32"

    def shape(self, numbers: Shape, scales: Shape) -> Shape | None:
        if self.block is None:
            fits = all(n == 1 for n in scales)
        else:
            grid = tuple(-(-n // size) for n, size in zip(numbers[-2:], self.block))
            fits = len(numbers) >= 2 and scales == (*numbers[:-2], *grid)
        return numbers if fits else None

    def values(self, numbers: np.ndarray, scales: np.ndarray) -> np.ndarray:
        codes = numbers.view(np.uint8)
        values = np.arange(256, dtype=np.uint8).view(numbers.dtype).astype(np.float32)
        scales = scales.astype(np.float32)
        if self.block is None:
            return (values * scales.reshape(()))[codes]
        rows, columns = self.block
        wide = np.repeat(scales, columns, -1)[..., : numbers.shape[-1]]
        made = np.empty(numbers.shape, np.float32)
        for n in range(wide.shape[-2]):
            at = (..., slice(n * rows, (n + 1) * rows), slice(None))
            np.multiply(values[codes[at]], wide[..., n : n + 1, :], out=made[at])
        return made


@dataclass(frozen=True)
class Mxfp4:
    """Rows of 32 numbers, E2M1, with a power of two for each: `blocks [..., out, G, 16]` and `scales [..., out, G]`, bytes both, are `[..., in, out]`.

    A byte holds two numbers, the one in its lower half first; a scale is 2 ** (byte - 127), NaN for 255. All of it is exact in bfloat16.
    OCP Microscaling Formats 1.0, sections 5.3 and 5.4; gpt-oss, arXiv:2508.10925.
    """

    numbers = "_blocks"
    scales = "_scales"
    dropped = ""
    packed = "uint8"
    result = "bfloat16"

    def shape(self, numbers: Shape, scales: Shape) -> Shape | None:
        fits = len(numbers) >= 3 and numbers[-1] == 16 and numbers[:-1] == scales
        return (*numbers[:-3], numbers[-2] * 32, numbers[-3]) if fits else None

    def values(self, numbers: np.ndarray, scales: np.ndarray) -> np.ndarray:
        byte = np.arange(256, dtype=np.uint8)
        pairs = np.stack([byte & 15, byte >> 4], -1).view(jnp.float4_e2m1fn).astype(np.float32).view(np.uint64)[:, 0]  # looked up as one
        powers = byte.view(jnp.float8_e8m0fnu).astype(np.float32)
        *lead, groups, _ = numbers.shape
        made = np.empty((*lead, groups * 32), jnp.bfloat16)
        for at in np.ndindex(*lead[:-1]):
            for n in range(0, lead[-1], ROWS):
                rows = (*at, slice(n, n + ROWS))
                wide = pairs[numbers[rows]].view(np.float32) * powers[scales[rows]][..., None]
                made[rows] = wide.reshape(wide.shape[0], -1)
        return made.swapaxes(-1, -2)


def plain(weights: Tensors, how: Mapping[str, Any] | None) -> Tensors:
    """The tensors of a checkpoint, whatever it is quantised by.

    Args:
        weights: of its files.
        how: `quantization_config` of its config.json.

    Raises:
        NotImplementedError: a way to quantise that there is not. WeightsError: numbers and scales that do not belong together.
    """
    return weights if how is None else Dequantized(weights, _scheme(how))


def _scheme(how: Mapping[str, Any]) -> Scheme:
    if not isinstance(how, Mapping):
        raise ValueError(f"config.json: quantization_config: expected an object with a quant_method, received {how!r}")
    method, block = how.get("quant_method"), how.get("weight_block_size")
    if method == "mxfp4":
        return Mxfp4()
    if method != "fp8":
        way = "dequantise it with the software that quantised it, save that, and read it from there"
        raise NotImplementedError(f"config.json: quantization_config: quant_method: expected fp8 or mxfp4, received {method!r}; {way}")
    if block is not None and not (isinstance(block, list) and len(block) == 2 and all(isinstance(n, int) and n > 0 for n in block)):
        sizes = "expected two positive numbers, or null for one scale a tensor"
        raise ValueError(f"config.json: quantization_config: weight_block_size: {sizes}, received {block!r}")
    return Fp8(None if block is None else (block[0], block[1]))


class Dequantized:
    """Plain tensors in the place of numbers and scales; each is computed when it is read.

    Attributes:
        stored: where the numbers are, with the shape and dtype of the tensor; scales are not among them.
    """

    def __init__(self, weights: Tensors, scheme: Scheme) -> None:
        self._weights, self._scheme = weights, scheme
        self._scaled: set[str] = set()
        self.stored: dict[str, Stored] = {}
        for name, tensor in weights.stored.items():
            if scheme.dropped and name.endswith(scheme.dropped):
                continue
            if name.endswith(scheme.scales):
                plain = name.removesuffix(scheme.scales)
                self.stored[plain] = self._pair(plain)
                self._scaled.add(plain)
            elif tensor.dtype.name == scheme.packed and not self._has_scales(name):
                raise WeightsError(_alone(tensor, name, self._scales_of(name)))
            elif not self._has_scales(name):
                self.stored[name] = tensor

    def read(self, name: str) -> np.ndarray:
        """A tensor."""
        if name not in self._scaled:
            return self._weights.read(name)
        return self._scheme.values(self._weights.read(name + self._scheme.numbers), self._weights.read(name + self._scheme.scales))

    def _scales_of(self, name: str) -> str:
        return name.removesuffix(self._scheme.numbers) + self._scheme.scales

    def _has_scales(self, name: str) -> bool:
        return name.endswith(self._scheme.numbers) and self._scales_of(name) in self._weights.stored

    def _pair(self, plain: str) -> Stored:
        scheme, stored = self._scheme, self._weights.stored
        scales = stored[plain + scheme.scales]
        numbers = stored.get(plain + scheme.numbers)
        if numbers is None:
            raise WeightsError(_alone(scales, plain + scheme.scales, plain + scheme.numbers))
        shape = scheme.shape(numbers.shape, scales.shape)
        if shape is None or numbers.dtype.name != scheme.packed:
            what = " and ".join(f"{tensor.dtype.name}{list(tensor.shape)}" for tensor in (numbers, scales))
            raise WeightsError(f"{numbers.file}: {plain}: expected numbers and scales of {scheme}, received {what}; config.json is of another checkpoint")
        return numbers._replace(shape=shape, dtype=jnp.dtype(scheme.result))


def _alone(tensor: Stored, name: str, other: str) -> str:
    return f"{tensor.file}: tensor {name}: expected {other} beside it, received none; the files are of different checkpoints, or not all there"
