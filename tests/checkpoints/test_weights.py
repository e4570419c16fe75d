"""A folder's tensors: read as they were written, and what is damaged or does not fit is refused with the file and the way out."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from transformer_jax.checkpoints.mapped import PIECE, copy, mapped, same
from transformer_jax.checkpoints.weights import INDEX, SINGLE, Weights, WeightsError

A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def raw(file: Path, header: Any, data: bytes) -> None:
    """A safetensors file, byte by byte."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_file({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(5, np.float16)}, tmp_path / A)
    save_file({"c": np.full((7,), 3, np.int64)}, tmp_path / B)
    index(tmp_path, {"a": A, "b": A, "c": B})
    return tmp_path


def index(folder: Path, places: dict[str, str]) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_shards_are_read_by_their_index(sharded: Path) -> None:
    weights = Weights(sharded)
    assert {name: tensor.shape for name, tensor in weights.stored.items()} == {"a": (2, 3), "b": (5,), "c": (7,)}
    np.testing.assert_array_equal(weights.read("a"), np.arange(6, dtype=np.float32).reshape(2, 3))
    assert weights.read("b").dtype == np.float16 and weights.read("c").tolist() == [3] * 7


def test_every_dtype_is_read_as_it_was_written(tmp_path: Path) -> None:
    kinds = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "F32": "float32", "U8": "uint8"}
    header, data, expected = {}, b"", {}
    for kind, name in kinds.items():
        array = np.array([[0.5, 1, 2], [4, 8, 16]]).astype(jnp.dtype(name))
        header[kind] = entry(kind, [2, 3], len(data), len(data) + array.nbytes)
        data, expected[kind] = data + array.tobytes(), array
    raw(tmp_path / SINGLE, header, data)
    weights = Weights(tmp_path)
    for kind, array in expected.items():
        found = weights.read(kind)
        assert found.dtype == array.dtype and not found.flags.writeable
        np.testing.assert_array_equal(found.view(np.uint8), array.view(np.uint8))


def test_a_scalar_and_nothing_are_read(tmp_path: Path) -> None:
    save_file({"scalar": np.array(3, np.float32), "nothing": np.empty((0, 5), np.float32)}, tmp_path / SINGLE)
    weights = Weights(tmp_path)
    assert weights.read("scalar").shape == () and weights.read("scalar") == 3
    assert weights.read("nothing").shape == (0, 5)


def test_a_single_file_goes_before_an_index(sharded: Path) -> None:
    save_file({"z": np.zeros(2)}, sharded / SINGLE)
    assert list(Weights(sharded).stored) == ["z"]


def test_links_out_of_the_folder_are_followed(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    blobs = tmp_path_factory.mktemp("blobs")
    (sharded / A).rename(blobs / "0a1b")
    (sharded / A).symlink_to(blobs / "0a1b")
    assert Weights(sharded).read("b").tolist() == [1] * 5
    (blobs / "0a1b").unlink()
    with pytest.raises(WeightsError, match=rf"{A}: expected a file of the checkpoint, received none; download"):
        Weights(sharded)


FLOATS = entry("F32", [4], 0, 16)
TWICE = b'{"a":' + json.dumps(FLOATS).encode() + b',"a":' + json.dumps(FLOATS).encode() + b"}"


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": FLOATS}, bytes(15), "received 85 bytes that are none .*cut off or damaged: copy or download"),
        ({"a": FLOATS}, bytes(17), "cut off or damaged"),
        (b'{"a"', bytes(16), "cut off or damaged"),
        ({"a": entry("F32", [3], 0, 16)}, bytes(16), "cut off or damaged"),
        ({"a": FLOATS, "b": FLOATS}, bytes(16), "cut off or damaged"),
        ({"a": FLOATS, "b": entry("F32", [1], 20, 24)}, bytes(24), "cut off or damaged"),
        (TWICE, bytes(16), "expected each name once, received a more than once"),
        ({"a": entry("F4", [32], 0, 16)}, bytes(16), "tensor a: expected a dtype out of F64, .*received F4; convert"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    raw(tmp_path / SINGLE, header, data)
    with pytest.raises(WeightsError, match=rf"{SINGLE}: .*{message}"):
        Weights(tmp_path)


@pytest.mark.parametrize("content", [b"", b"abc", struct.pack("<Q", 10**6) + b"{}", struct.pack("<Q", 2**63) + b"{}"])
def test_a_file_shorter_than_its_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SINGLE).write_bytes(content)
    with pytest.raises(WeightsError, match=f"received {len(content)} bytes that are none"):
        Weights(tmp_path)


def test_a_file_cut_off_anywhere_is_refused(sharded: Path) -> None:
    whole = (sharded / B).read_bytes()
    for length in range(len(whole)):
        (sharded / B).write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=B):
            Weights(sharded)


def test_a_pointer_of_git_lfs_is_told(tmp_path: Path) -> None:
    (tmp_path / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    with pytest.raises(WeightsError, match="Git LFS's pointer to one; run git lfs pull"):
        Weights(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON"),
        ("[]", "an object whose weight_map gives a file for each tensor"),
        ('{"metadata": {}}', "an object whose weight_map gives a file"),
        ('{"weight_map": {"a": 3}}', "an object whose weight_map gives a file"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "each name once, received a more than once"),
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(WeightsError, match=f"{INDEX}: .*{message}"):
        Weights(tmp_path)


@pytest.mark.parametrize("name", ["/etc/x.safetensors", "../x.safetensors", "a/../../x.safetensors", "C:\\x.safetensors", "..\\x.safetensors", "model.bin"])
def test_an_index_leads_to_no_other_files(sharded: Path, name: str) -> None:
    index(sharded, {"a": A, "b": A, "c": name})
    with pytest.raises(WeightsError, match=r"tensor c: expected the name of a safetensors file in this folder, received .* it is not opened"):
        Weights(sharded)


def test_an_index_and_shards_that_disagree_are_refused(sharded: Path) -> None:
    index(sharded, {"a": A, "b": A, "c": B, "d": B})
    with pytest.raises(WeightsError, match=f"{B}: expected d, which {INDEX} says it has, received a file without; .*copy or download both"):
        Weights(sharded)
    index(sharded, {"a": A, "c": B})
    with pytest.raises(WeightsError, match=f"{A}: expected no tensors but those that {INDEX} says it has, received b too"):
        Weights(sharded)
    save_file({"c": np.zeros(7, np.int64), "a": np.zeros(1)}, sharded / B)
    index(sharded, {"a": A, "b": A, "c": B})
    with pytest.raises(WeightsError, match=f"{B}: expected no tensors but .* received a too"):
        Weights(sharded)
    (sharded / B).unlink()
    with pytest.raises(WeightsError, match=f"{B}: expected a file of the checkpoint, received none"):
        Weights(sharded)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.ckpt", "weights.pt"])
def test_pickles_are_refused_and_not_opened(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)  # whoever opened it would wait for ever
    with pytest.raises(WeightsError, match=f"received pickles alone: {name}; opening a pickle can run any code.*convert it to safetensors by"):
        Weights(tmp_path)


def test_a_folder_without_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"expected {SINGLE}, or {INDEX} and the shards that it names, received an empty folder"):
        Weights(tmp_path)
    (tmp_path / "config.json").touch()
    with pytest.raises(WeightsError, match=r"received a folder with: config.json"):
        Weights(tmp_path)
    with pytest.raises(WeightsError, match="received no folder"):
        Weights(tmp_path / "nowhere")


@pytest.mark.parametrize("shape", [(), (7,), (3 * PIECE,), (5, 3, PIECE // 2), (2, PIECE, 3)])
@pytest.mark.parametrize("kinds", [("float32", "bfloat16"), ("bfloat16", "float32"), ("float32", "float32")])
def test_a_copy_in_pieces_is_a_copy(tmp_path: Path, shape: tuple[int, ...], kinds: tuple[str, str]) -> None:
    before, after = (jnp.dtype(kind) for kind in kinds)
    numbers = np.random.default_rng(0).normal(size=shape).astype(before)
    (tmp_path / "numbers").write_bytes(b"123" + numbers.tobytes())
    array = mapped(tmp_path / "numbers", 3, before, shape)
    for source, whole in ((array, numbers), (array.T, numbers.T)):
        target = np.zeros(source.shape, after)
        copy(target, source)
        np.testing.assert_array_equal(target, whole.astype(after))
    assert same(array, numbers) and same(array.T, numbers.T)
    other = numbers.copy()
    other[(-1,) * other.ndim] += 1
    assert not same(array, other) and not same(array, numbers[None])
