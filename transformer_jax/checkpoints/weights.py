"""The tensors of a checkpoint's folder: safetensors files, one or several with an index."""

import json
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from transformer_jax.checkpoints.mapped import mapped

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

# numpy's names for those of the files. What is packed, several numbers to a byte, is not here.
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16",
    "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


class WeightsError(OSError):
    """Tensors that are not there, or damaged; the message says in which file, and the way out."""


class Stored(NamedTuple):
    """A tensor in a file: its bytes begin at `offset`."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int


class Tensors(Protocol):
    """Tensors by name."""

    stored: dict[str, Stored]

    def read(self, name: str) -> np.ndarray: ...


class Weights:
    """A folder's tensors, read one at a time.

    Where there are both, model.safetensors goes before the index, as in transformers. Every file's header is read and compared with its length and with the
    index; no tensor is. Pickles (pytorch_model.bin) are never opened: they run what is in them.

    Args:
        folder: with model.safetensors, or model.safetensors.index.json and the shards that it names.

    Attributes:
        stored: where each is, with its shape and dtype.

    Raises:
        WeightsError: a file is missing or damaged, or the index and the shards do not agree.
    """

    def __init__(self, folder: Path) -> None:
        self.stored: dict[str, Stored] = {}
        if _present(folder / SINGLE):
            self.stored = _header(folder / SINGLE)
        elif _present(folder / INDEX):
            for shard, names in shards(folder / INDEX).items():
                found = _header(folder / shard)
                _agree(folder / shard, names, set(found))
                self.stored |= found
        else:
            raise WeightsError(_without(folder))

    def read(self, name: str) -> np.ndarray:
        """A tensor in its own dtype, of the file's own pages: read-only, and in memory only where it is looked at."""
        tensor = self.stored[name]
        return mapped(tensor.file, tensor.offset, tensor.dtype, tensor.shape)


def shards(index: Path) -> dict[str, set[str]]:
    """The files that an index names, and the tensors that it says are in them.

    Raises:
        WeightsError: it is no index, or it names a file outside its folder or one that is no safetensors file.
    """
    values = _json(index, index.read_bytes())
    places = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise WeightsError(f"{index}: expected an object whose weight_map gives a file for each tensor, received one without; copy or download it again")
    found: dict[str, set[str]] = {}
    for name, shard in places.items():
        if not _inside(shard):
            raise WeightsError(f"{index}: tensor {name}: expected the name of a safetensors file in this folder, received {shard!r}; it is not opened")
        found.setdefault(shard, set()).add(name)
    return found


def _inside(shard: str) -> bool:
    """By its name alone: links are followed, since the cache of downloads keeps its files elsewhere."""
    ways = PurePosixPath(shard), PureWindowsPath(shard)
    return shard.endswith(".safetensors") and not any(way.anchor or ".." in way.parts for way in ways)


def _header(file: Path) -> dict[str, Stored]:
    try:
        with safe_open(file, framework="np"):
            pass  # opening compares all offsets, shapes and dtypes with each other and with the file's length
        with open(file, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            tensors = _json(file, opened.read(length))
    except FileNotFoundError as error:
        raise WeightsError(f"{file}: expected a file of the checkpoint, received none; download it, and what a link leads to, again") from error
    except SafetensorError as error:
        raise WeightsError(_damaged(file, error)) from error
    except OSError as error:
        raise WeightsError(f"{file}: expected a safetensors file, received what cannot be read as one ({error})") from error
    tensors.pop("__metadata__", None)
    for name, tensor in tensors.items():
        if tensor["dtype"] not in DTYPES:
            raise WeightsError(f"{file}: tensor {name}: expected a dtype out of {', '.join(DTYPES)}, received {tensor['dtype']}; convert it to one of them")
    return {
        name: Stored(file, jnp.dtype(DTYPES[tensor["dtype"]]), tuple(tensor["shape"]), 8 + length + tensor["data_offsets"][0])
        for name, tensor in tensors.items()
    }


def _damaged(file: Path, error: Exception) -> str:
    size = file.stat().st_size
    with open(file, "rb") as opened:
        pointer = opened.read(24) == b"version https://git-lfs."
    if pointer:
        return f"{file}: expected a safetensors file, received Git LFS's pointer to one; run git lfs pull in its folder"
    return f"{file}: expected a whole safetensors file, received {size} bytes that are none ({error}); it is cut off or damaged: copy or download it again"


def _json(file: Path, text: bytes) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            names = [name for name, _ in pairs]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise WeightsError(f"{file}: expected each name once, received {_few(twice)} more than once; whoever wrote it must say which one is meant")
        return values

    try:
        return json.loads(text, object_pairs_hook=once)
    except ValueError as error:
        raise WeightsError(f"{file}: expected JSON, received something else ({error}); copy or download it again") from error


def _agree(file: Path, named: set[str], there: set[str]) -> None:
    if named - there:
        what = f"expected {_few(sorted(named - there))}, which {INDEX} says it has, received a file without"
    elif there - named:
        what = f"expected no tensors but those that {INDEX} says it has, received {_few(sorted(there - named))} too"
    else:
        return
    raise WeightsError(f"{file}: {what}; the index and the file are of different checkpoints: copy or download both again")


def _without(folder: Path) -> str:
    files = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    pickles = [name for name in files if name.endswith(PICKLES)]
    found = f"{'pickles alone' if pickles else 'a folder with'}: {_few(pickles or files)}" if files else "an empty folder" if folder.is_dir() else "no folder"
    what = f"{folder}: expected {SINGLE}, or {INDEX} and the shards that it names, received {found}"
    if pickles:
        way = "transformers' from_pretrained(folder) and save_pretrained(other_folder)"
        return f"{what}; opening a pickle can run any code, so it is not done here: where you trust the file, convert it to safetensors by {way}"
    return what


def _present(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _few(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
