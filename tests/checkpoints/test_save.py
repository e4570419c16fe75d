"""Checkpoints are written as others read them, and the one that was there is whole until the new one is."""

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from transformer_jax.checkpoints.save import write_weights
from transformer_jax.checkpoints.weights import INDEX, SINGLE, Weights, WeightsError

OLD, NEW = 3.0, 5.0
POOLED = {"config.json": "same", "modules.json": "same", "pooling/config.json": "same"}
FEW, MANY = 10_000, 100  # bytes of a shard: all tensors in one file, and in four


def tensors(value: float, number: int = 7) -> Iterator[tuple[str, np.ndarray]]:
    for n in range(number):
        yield f"layers.{n}", np.full((3, 4), value, np.float32)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def value(folder: Path) -> float:
    """The one number that is in all tensors."""
    weights = Weights(folder)
    assert set(weights.stored) == {f"layers.{n}" for n in range(7)}
    (found,) = {float(x) for name in weights.stored for x in weights.read(name).ravel()}
    return found


def test_shards_have_the_published_names_and_index(tmp_path: Path) -> None:
    write_weights(tmp_path, tensors(OLD), max_shard_bytes=MANY)
    shards = [f"model-{n:05}-of-00004.safetensors" for n in range(1, 5)]
    assert names(tmp_path) == [*shards, INDEX]
    written = json.loads((tmp_path / INDEX).read_text())
    assert written == {"metadata": {"total_size": 7 * 48}, "weight_map": {f"layers.{n}": shards[n // 2] for n in range(7)}}
    for shard in shards:
        with safe_open(tmp_path / shard, framework="np") as opened:
            assert opened.metadata() == {"format": "pt"}
    assert value(tmp_path) == OLD


def test_what_fits_is_one_file_that_others_may_read(tmp_path: Path) -> None:
    write_weights(tmp_path, tensors(OLD), files={"config.json": "{}"})
    assert names(tmp_path) == ["config.json", SINGLE]
    (tmp_path / "made here").touch()
    assert stat.S_IMODE((tmp_path / SINGLE).stat().st_mode) == stat.S_IMODE((tmp_path / "made here").stat().st_mode)


def test_arrays_of_any_kind_and_layout_are_written(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    given: dict[str, Any] = {"T": numbers.T, "step": numbers[::2, ::-1], "scalar": np.float32(3), "nothing": numbers[:0]}
    given |= {kind: jnp.asarray(numbers, kind) for kind in ("bfloat16", "float16", "float32")}
    write_weights(tmp_path, given.items())
    weights = Weights(tmp_path)
    for name, array in given.items():
        found = weights.read(name)
        assert found.dtype == array.dtype and found.shape == array.shape
        np.testing.assert_array_equal(found, np.asarray(array))


def test_one_shard_is_held_at_a_time(tmp_path: Path) -> None:
    alive: list[Any] = []

    class Counted(np.ndarray):
        def __del__(self) -> None:
            alive.remove(id(self))

    def made() -> Iterator[tuple[str, np.ndarray]]:
        for n in range(20):
            array = np.zeros((3, 4), np.float32).view(Counted)
            alive.append(id(array))
            most.append(len(alive))
            yield f"layers.{n}", array
            del array

    most: list[int] = []
    write_weights(tmp_path, made(), max_shard_bytes=MANY)
    assert len(most) == 20 and max(most) <= 3


def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tensor layers\.0: expected once, received twice"):
        write_weights(tmp_path, [*tensors(OLD), *tensors(NEW, 1)])
    assert names(tmp_path) == []


class Killed(BaseException):
    """Nothing of the process happens any more."""


def killed_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """The process ends before its step-th change of the folder."""
    done = 0

    def counted(function: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            done += 1
            if done >= step:
                raise Killed
            return function(*args, **kwargs)

        return run

    for module, function in ((os, "replace"), (os, "link"), (os, "unlink"), (shutil, "rmtree")):
        patch.setattr(module, function, counted(getattr(module, function)))
    patch.setattr("transformer_jax.checkpoints.save.save_file", counted(__import__("safetensors.numpy").numpy.save_file))


@pytest.mark.parametrize("files", [{"config.json": "same"}, {"config.json": "new"}], ids=["same config", "new config"])
@pytest.mark.parametrize("new", [FEW, 200], ids=["to one", "to shards"])
@pytest.mark.parametrize("old", [FEW, 200, MANY], ids=["one", "as many shards", "other shards"])
def test_whenever_it_is_killed_the_old_or_the_new_checkpoint_is_whole(tmp_path: Path, old: int, new: int, files: dict[str, str]) -> None:
    seen = []
    for step in range(1, 60):
        folder = tmp_path / str(step)
        folder.mkdir()
        write_weights(folder, tensors(OLD), max_shard_bytes=old, files={"config.json": "same"})
        with pytest.MonkeyPatch.context() as patch:
            killed_at(step, patch)
            try:
                write_weights(folder, tensors(NEW), max_shard_bytes=new, files=files)
            except Killed:
                over = False
            else:
                over = True
        seen.append(value(folder))
        if (folder / "config.json").exists():
            assert (folder / "config.json").read_text() == (files["config.json"] if seen[-1] == NEW else "same")
        else:
            assert files["config.json"] == "new"
        write_weights(folder, tensors(NEW + 1), max_shard_bytes=new, files=files)  # nothing is in the way of the next
        assert value(folder) == NEW + 1
        assert len(names(folder)) == (2 if new == FEW else 4)
        if over:
            break
    assert over and seen == sorted(seen) and seen[0] == OLD


@pytest.mark.parametrize("pools", [True, False], ids=["with", "without"])
def test_a_file_that_belongs_to_one_checkpoint_is_never_beside_another(tmp_path: Path, pools: bool) -> None:
    sets: list[dict[str, str | None]] = [{**POOLED}, {"config.json": "same", "modules.json": None}]
    before, after = sets if pools else sets[::-1]
    states = set()
    for step in range(1, 60):
        folder = tmp_path / str(step)
        folder.mkdir()
        write_weights(folder, tensors(OLD), files=before)
        with pytest.MonkeyPatch.context() as patch:
            killed_at(step, patch)
            with contextlib.suppress(Killed):
                write_weights(folder, tensors(NEW), files=after)
        if (folder / "config.json").exists():
            states.add((value(folder), (folder / "modules.json").exists()))
        if states and max(states)[0] == NEW:
            break
    assert states == {(OLD, pools), (NEW, not pools)}


def test_a_file_where_a_folder_is_to_be_is_told_before_anything_is_changed(tmp_path: Path) -> None:
    write_weights(tmp_path, tensors(OLD), files={"config.json": "same"})
    (tmp_path / "pooling").touch()
    with pytest.raises(WeightsError, match=r"pooling: expected a folder, or a name for one, received a file; move it away"):
        write_weights(tmp_path, tensors(NEW), files={**POOLED, "config.json": "new"})
    assert value(tmp_path) == OLD and (tmp_path / "config.json").read_text() == "same"


def test_files_beside_the_tensors_come_and_go_with_them(tmp_path: Path) -> None:
    pooled: dict[str, str | None] = {"config.json": "{}", "modules.json": "[]", "1_Pooling/config.json": "{}"}
    for files, there in ((pooled, set(pooled)), ({"config.json": "{}", "modules.json": None}, {"config.json", "1_Pooling/config.json"})):
        write_weights(tmp_path, tensors(NEW), files=files)
        assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.json")} == there
    write_weights(tmp_path, tensors(OLD), files={"modules.json": None})
    assert value(tmp_path) == OLD


def test_without_links_it_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", no)
    for number in (OLD, NEW):
        write_weights(tmp_path, tensors(number), max_shard_bytes=MANY)
        assert value(tmp_path) == number and len(names(tmp_path)) == 5


def test_what_fails_midway_leaves_the_old_one(tmp_path: Path) -> None:
    def fails() -> Iterator[tuple[str, np.ndarray]]:
        yield from tensors(NEW, 5)
        raise RuntimeError("midway")

    write_weights(tmp_path, tensors(OLD), max_shard_bytes=MANY)
    before = names(tmp_path)
    with pytest.raises(RuntimeError, match="midway"):
        write_weights(tmp_path, fails(), max_shard_bytes=MANY)
    assert names(tmp_path) == before and value(tmp_path) == OLD


def test_a_full_disk_is_told_and_leaves_the_old_one(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk's end."""
    write_weights(tmp_path, tensors(OLD), max_shard_bytes=MANY)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-W", "error", __file__, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path}: file 1 of the checkpoint, with 8,000,000 bytes of tensors, could not be written (")
    assert "File too large" in done.stdout and done.stdout.strip().endswith("what was there is as it was: make room, or save to another folder")
    assert len(names(tmp_path)) == 5 and value(tmp_path) == OLD


if __name__ == "__main__":
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    try:
        write_weights(Path(sys.argv[1]), [("large", np.zeros(1_000_000))])
    except WeightsError as error:
        print(error)
