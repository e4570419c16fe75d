"""Quantised tensors are the plain ones that they stand for; the numbers here are worked out by hand."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import from_pretrained, save_pretrained
from transformer_jax.checkpoints.quantized import Fp8, Mxfp4, plain
from transformer_jax.checkpoints.save import write_weights
from transformer_jax.checkpoints.weights import Stored, Weights, WeightsError

FP8 = {"quant_method": "fp8", "weight_block_size": [2, 3], "fmt": "e4m3", "activation_scheme": "dynamic"}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}


class Held:
    """Tensors in memory."""

    def __init__(self, **arrays: np.ndarray) -> None:
        self.arrays = arrays
        self.stored = {name: Stored(Path("x.safetensors"), array.dtype, array.shape, 0) for name, array in arrays.items()}

    def read(self, name: str) -> np.ndarray:
        return self.arrays[name]


def fp8(numbers: Any) -> np.ndarray:
    return np.asarray(numbers, np.float32).astype(jnp.float8_e4m3fn)


def test_fp8_blocks_have_a_scale_each() -> None:
    numbers = fp8([[1, -2, 3, 4, 448], [0.5, 6, 7, 8, 9], [10, 11, 12, 13, 0.001953125]])
    scales = np.array([[2, 0.1], [4, 1000]], np.float32)
    weights = plain(Held(weight=numbers, weight_scale_inv=scales, bias=np.ones(3, np.float32)), FP8)
    tenth = np.float32(0.1)
    expected = [[2, -4, 6, 4 * tenth, 448 * tenth], [1, 12, 14, 8 * tenth, 9 * tenth], [40, 44, 48, 13000, 1.953125]]
    assert {name: (t.shape, t.dtype.name) for name, t in weights.stored.items()} == {"weight": ((3, 5), "float32"), "bias": ((3,), "float32")}
    np.testing.assert_array_equal(weights.read("weight"), np.array(expected, np.float32))
    assert weights.read("bias").tolist() == [1, 1, 1]


def test_fp8_of_several_experts_and_of_one_scale() -> None:
    numbers = fp8(np.arange(12).reshape(2, 3, 2))
    scales = np.array([[[1], [2]], [[4], [8]]], np.float32)
    expected = np.arange(12).reshape(2, 3, 2) * np.array([[1, 1, 2], [4, 4, 8]])[..., None]
    np.testing.assert_array_equal(plain(Held(weight=numbers, weight_scale_inv=scales), FP8).read("weight"), expected)
    one = {**FP8, "weight_block_size": None, "activation_scheme": "static"}
    weights = plain(Held(**{"weight": numbers, "weight_scale_inv": np.float32(0.5)[None], "x.activation_scale": np.ones(1, np.float32)}), one)
    assert list(weights.stored) == ["weight"]
    np.testing.assert_array_equal(weights.read("weight"), np.arange(12).reshape(2, 3, 2) / 2)


def test_mxfp4_has_two_numbers_a_byte_and_a_power_of_two_for_32() -> None:
    """Sign, two bits of exponent, one of mantissa: 0, 0.5, 1, 1.5, 2, 3, 4, 6."""
    magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    every = np.array([2 * n | (2 * n + 1) << 4 for n in range(8)] * 2, np.uint8)  # 0, 1, 2, ... 15, twice
    row = np.array([*magnitudes, *(-m for m in magnitudes)] * 2)
    blocks = np.stack([[every, every[::-1]], [every, every], [every, every]])[None]  # [1, 3, 2, 16]
    scales = np.array([[[127, 128], [120, 0], [252, 130]]], np.uint8)
    weights = plain(Held(gate_blocks=blocks, gate_scales=scales, router=np.ones(2, np.float32)), MXFP4)
    assert {name: (t.shape, t.dtype.name) for name, t in weights.stored.items()} == {"gate": ((1, 64, 3), "bfloat16"), "router": ((2,), "float32")}
    found = weights.read("gate").astype(np.float64)
    assert found.shape == (1, 64, 3)
    np.testing.assert_array_equal(found[0, :32, 0], row)
    np.testing.assert_array_equal(found[0, 32:, 0].reshape(16, 2), 2 * row.reshape(16, 2)[::-1])
    np.testing.assert_array_equal(found[0, :32, 1], row / 128)
    np.testing.assert_array_equal(found[0, 32:, 1], row * 2.0**-127)
    np.testing.assert_array_equal(found[0, 32:, 2], row * 8)
    assert found[0, 1, 2] == 2.0**124 and np.signbit(found[0, 8, 0])


@pytest.mark.parametrize(
    ("how", "arrays", "message"),
    [
        (FP8, {"weight": fp8(np.ones((3, 5)))}, "tensor weight: expected weight_scale_inv beside it"),
        (FP8, {"weight_scale_inv": np.ones((2, 2), np.float32)}, "tensor weight_scale_inv: expected weight beside it"),
        (FP8, {"weight": fp8(np.ones((3, 5))), "weight_scale_inv": np.ones((2, 1), np.float32)}, r"received float8_e4m3fn\[3, 5\] and float32\[2, 1\]"),
        (FP8, {"weight": np.ones((3, 5), np.int8), "weight_scale_inv": np.ones((2, 2), np.float32)}, r"received int8\[3, 5\]"),
        (MXFP4, {"x_blocks": np.zeros((3, 2, 16), np.uint8)}, "tensor x_blocks: expected x_scales beside it"),
        (MXFP4, {"x_scales": np.zeros((3, 2), np.uint8)}, "tensor x_scales: expected x_blocks beside it"),
        (MXFP4, {"x_blocks": np.zeros((3, 2, 8), np.uint8), "x_scales": np.zeros((3, 2), np.uint8)}, r"received uint8\[3, 2, 8\]"),
    ],
)
def test_numbers_and_scales_that_do_not_belong_together_are_refused(how: Any, arrays: Any, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        plain(Held(**arrays), how)


def test_other_ways_are_refused_with_a_way_out() -> None:
    for method in ("gptq", "bitsandbytes", None):
        with pytest.raises(NotImplementedError, match=f"quant_method: expected fp8 or mxfp4, received {method!r}; dequantise it with the software"):
            plain(Held(), {"quant_method": method})
    for block in ([128], [0, 128], 128):
        with pytest.raises(ValueError, match="weight_block_size: expected two positive numbers"):
            plain(Held(), {**FP8, "weight_block_size": block})


def test_a_checkpoint_that_is_not_quantised_is_itself() -> None:
    held = Held(weight=np.ones(2, np.float32))
    assert plain(held, None) is held


def test_shapes_are_those_of_the_values() -> None:
    for scheme, numbers, scales in (
        (Fp8((128, 128)), fp8(np.ones((300, 200))), np.ones((3, 2), np.float32)),
        (Mxfp4(), np.zeros((2, 3, 5, 16), np.uint8), np.zeros((2, 3, 5), np.uint8)),
    ):
        made = scheme.values(numbers, scales)
        assert made.shape == scheme.shape(numbers.shape, scales.shape) and made.dtype.name == scheme.result


def test_a_quantised_model_is_loaded_as_the_plain_one(tmp_path: Path) -> None:
    """Of the numbers of a golden only those of its products are quantised; what they stand for, written plainly, loads the same."""
    golden = Path(__file__).parents[1] / "zoo" / "goldens" / "llama"
    stored = Weights(golden)
    block = (2, 3)
    numbers, scales = {}, {}
    for name, tensor in stored.stored.items():
        if "_proj.weight" in name:
            grid = tuple(-(-n // size) for n, size in zip(tensor.shape, block))
            numbers[name] = fp8(1000 * stored.read(name))
            scales[name] = np.random.default_rng(0).uniform(1e-4, 1e-2, size=grid).astype(np.float32)

    def tensors(quantized: bool) -> Iterator[tuple[str, np.ndarray]]:
        for name in stored.stored:
            if name not in numbers:
                yield name, stored.read(name)
            elif quantized:
                yield from ((name, numbers[name]), (f"{name}_scale_inv", scales[name]))
            else:
                rows, columns = numbers[name].shape
                wide = np.kron(scales[name], np.ones(block, np.float32))[:rows, :columns]
                yield name, numbers[name].astype(np.float32) * wide

    config = json.loads((golden / "config.json").read_text())
    made = {}
    for quantized in (True, False):
        folder = tmp_path / str(quantized)
        folder.mkdir()
        write_weights(folder, tensors(quantized), files={"config.json": json.dumps({**config, **({"quantization_config": FP8} if quantized else {})})})
        model, made[quantized] = from_pretrained(folder)
    assert len(scales) >= 7
    jax.tree.map(np.testing.assert_array_equal, made[True], made[False])
    save_pretrained(tmp_path / "saved", model, made[True])
    jax.tree.map(np.testing.assert_array_equal, from_pretrained(tmp_path / "saved")[1], made[False])
