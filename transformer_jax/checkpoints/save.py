"""Writing a checkpoint's tensors: safetensors files, one or several with an index, as Hugging Face's transformers names them."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from transformer_jax.checkpoints.weights import INDEX, SINGLE, WeightsError, shards

ASIDE = ".saving-"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def write_weights(
    folder: Path, tensors: Iterable[tuple[str, Any]], *, max_shard_bytes: int = 5_000_000_000, files: Mapping[str, str | None] | None = None
) -> None:
    """Writes model.safetensors, or, where that would hold more than `max_shard_bytes`, shards and model.safetensors.index.json.

    Everything is first written aside, in a folder within this one. Then one renaming or removal puts the new checkpoint in the place of the old: a reader finds
    one of them whole, never parts of both, also after a crash. What is left of the old one is removed at the end. One process at a time.

    Args:
        folder: that is there.
        tensors: names and arrays, in the order in which they are put into shards. A shard of them and the next tensor are held in memory.
        max_shard_bytes: of a file's tensors; a tensor larger than this has a file of its own.
        files: texts of files that belong to the checkpoint, such as config.json, and None for those that it must not have. One that changes is missing for the
            moment of the exchange, since beside the other checkpoint's tensors it would mislead; the first then goes first and comes last, as without it there
            is no checkpoint.

    Raises:
        WeightsError: a file could not be written; what was there is as it was. ValueError: a name twice.
    """
    _sweep(folder)
    aside = Path(tempfile.mkdtemp(prefix=ASIDE, dir=folder))
    try:
        names, total = _written(aside, tensors, max_shard_bytes)
        changed = files if files and not all(_says(folder / name, text) for name, text in files.items()) else {}
        for name, text in changed.items():
            if text is not None:
                for parent in ((aside / name).parent, (folder / name).parent):
                    _make(parent)
                _put(aside / name, text)
        _exchange(folder, aside, names, total, list(changed))
    finally:
        _sweep(folder)


def _written(aside: Path, tensors: Iterable[tuple[str, Any]], most: int) -> tuple[dict[str, list[str]], int]:
    """Writes the files; which tensors each has, and the bytes of all."""
    parts: list[list[str]] = []
    total = 0
    for arrays in _cut(tensors, most):
        size = sum(array.nbytes for array in arrays.values())
        try:
            save_file(arrays, aside / str(len(parts)), metadata={"format": "pt"})
            _settle(aside / str(len(parts)))
        except (OSError, SafetensorError) as error:
            what = f"{aside.parent}: file {len(parts) + 1} of the checkpoint, with {size:,} bytes of tensors, could not be written ({error})"
            raise WeightsError(f"{what}; what was there is as it was: make room, or save to another folder") from error
        parts.append(list(arrays))
        total += size
    found = {SINGLE if len(parts) == 1 else f"model-{n:05}-of-{len(parts):05}.safetensors": part for n, part in enumerate(parts, 1)}
    for n, name in enumerate(found):
        os.replace(aside / str(n), aside / name)
    return found, total


def _cut(tensors: Iterable[tuple[str, Any]], most: int) -> Iterator[dict[str, np.ndarray]]:
    """The tensors of one file after the other. Those of a file are gone when the next are asked for."""
    arrays: dict[str, np.ndarray] = {}
    seen: set[str] = set()
    size = 0
    for name, tensor in tensors:
        if name in seen:
            raise ValueError(f"tensor {name}: expected once, received twice")
        seen.add(name)
        array = np.asarray(tensor, order="C")
        if arrays and size + array.nbytes > most:
            yield arrays
            arrays.clear()
            size = 0
        arrays[name] = array
        size += array.nbytes
    yield arrays


def _exchange(folder: Path, aside: Path, names: Mapping[str, list[str]], total: int, changed: Sequence[str]) -> None:
    """Takes what was written aside for what is there. A reader takes the single file before the index, and of others only what the index names."""
    old = _named(folder)
    for name in changed:
        (folder / name).unlink(missing_ok=True)
    if SINGLE in names:
        os.replace(aside / SINGLE, folder / SINGLE)
    else:
        _exchange_shards(folder, aside, names, total)
    for name in reversed(changed):
        if (aside / name).exists():
            os.replace(aside / name, folder / name)
    stale = old | {path.name for path in folder.iterdir() if SHARD.fullmatch(path.name)} | ({INDEX} if SINGLE in names else set())
    for name in sorted(stale - set(names), key=lambda name: name != INDEX):
        (folder / name).unlink(missing_ok=True)


def _exchange_shards(folder: Path, aside: Path, names: Mapping[str, list[str]], total: int) -> None:
    taken = any(_present(folder / name) for name in names)
    if taken:  # the names may be the old checkpoint's: until it is gone, the index leads to the files where they are
        _index(folder, aside, {f"{aside.name}/{name}": part for name, part in names.items()}, total)
    else:
        for name in names:
            os.replace(aside / name, folder / name)
        _index(folder, aside, names, total)
    (folder / SINGLE).unlink(missing_ok=True)
    if taken:
        for name in names:
            (folder / name).unlink(missing_ok=True)
            try:
                os.link(aside / name, folder / name)
            except OSError:  # a file system without links
                shutil.copy2(aside / name, folder / name)
        _index(folder, aside, names, total)


def _index(folder: Path, aside: Path, names: Mapping[str, list[str]], total: int) -> None:
    places = {tensor: name for name, part in names.items() for tensor in part}
    _put(aside / INDEX, json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2, sort_keys=True) + "\n")
    os.replace(aside / INDEX, folder / INDEX)


def _named(folder: Path) -> set[str]:
    """Files that the index there names."""
    try:
        return set(shards(folder / INDEX))
    except (OSError, ValueError):
        return set()


def _sweep(folder: Path) -> None:
    """Removes what was written aside, but for files to which the index leads."""
    used = {name.partition("/")[0] for name in _named(folder)}
    for path in folder.glob(f"{ASIDE}*"):
        if path.name not in used:
            shutil.rmtree(path, ignore_errors=True)


def _settle(path: Path) -> None:
    """On the disk, and for those to read who may read other files made here: safetensors' are the owner's alone."""
    probe = path.with_name("probe")
    probe.touch()
    path.chmod(probe.stat().st_mode)
    with open(path, "rb+") as opened:
        os.fsync(opened.fileno())


def _put(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError:
        raise WeightsError(f"{folder}: expected a folder, or a name for one, received a file; move it away, or save to another folder") from None


def _says(path: Path, text: str | None) -> bool:
    """Whether a file has a text, or for None, whether it is not there."""
    try:
        return path.read_text(encoding="utf-8") == text
    except FileNotFoundError:
        return text is None
    except (OSError, ValueError):
        return False


def _present(path: Path) -> bool:
    return path.exists() or path.is_symlink()
