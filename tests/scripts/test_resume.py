"""Training that was killed, or that ran out of room, ends where an unbroken run ends, bit for bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
TINY = Path("runs") / "tiny"
Start = Callable[..., subprocess.Popen[str]]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / TINY / "metrics.jsonl").read_text().splitlines()]


def steps_done(folder: Path) -> int:
    path = folder / TINY / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def half_saved(folder: Path) -> bool:
    path = folder / TINY / "checkpoints"
    return path.exists() and any("tmp" in name for name in os.listdir(path))


def kill(process: subprocess.Popen[str], when: Callable[[], bool], delay: float = 0.0) -> None:
    """With SIGKILL, as soon as something is the case."""
    while not when():
        if process.poll() is not None:
            pytest.fail(f"it ended before it could be killed: {process.communicate()}")
        time.sleep(0.0005)
    time.sleep(delay)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def kill_while_saving(start: Start, folder: Path, after: int) -> None:
    """A save may end between our look and the kill: then once more."""
    for _ in range(8):
        kill(start(folder, "train.py", "tiny_lm.py", "--resume"), lambda: steps_done(folder) >= after and half_saved(folder))
        if half_saved(folder):
            return
    pytest.fail("no save was met")


def same(folder: Path, finished: Path, saved: Callable[[Path], Any]) -> None:
    chex.assert_trees_all_equal(saved(folder), saved(finished))
    assert [row["step"] for row in rows(folder)] == list(range(1, 121))
    assert rows(folder) == rows(finished)
    assert not half_saved(folder)
    for name in ("config.json", "tokenizer.json", "sample.txt"):
        assert (folder / TINY / name).read_bytes() == (finished / TINY / name).read_bytes()


@pytest.mark.slow
def test_killed_twice_once_while_saving_it_ends_as_if_unbroken(workplace: Path, finished: Path, start: Start, run: Any, saved: Any) -> None:
    kill(start(workplace, "train.py", "tiny_lm.py"), lambda: steps_done(workplace) >= 25)
    kill_while_saving(start, workplace, after=60)
    assert (workplace / TINY / "checkpoints" / "50").exists()
    done = run(workplace, "train.py", str(TINY / "config.json"), "--resume")
    assert done.code == 0, done.err
    assert "step 120/120 " in done.out and "step 40/120 " not in done.out  # it went on, and did not start again
    same(workplace, finished, saved)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_five_random_moments_it_ends_as_if_unbroken(
    workplace: Path, finished: Path, start: Start, run: Any, saved: Any, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Each process compiles anew, as it does for a user. One kill comes before the first step, one while saving, three anywhere."""
    monkeypatch.delitem(environment, "JAX_COMPILATION_CACHE_DIR")
    chance = random.Random(seed)
    first, second, third = sorted(chance.sample(range(1, 100), 3))
    kill(start(workplace, "train.py", "tiny_lm.py"), (workplace / TINY / "config.json").exists, chance.uniform(0, 3))
    for moment in (first, second):
        kill(start(workplace, "train.py", "tiny_lm.py", "--resume"), lambda moment=moment: steps_done(workplace) >= moment, chance.uniform(0, 0.08))
    kill_while_saving(start, workplace, after=second)
    kill(start(workplace, "train.py", "tiny_lm.py", "--resume"), lambda: steps_done(workplace) >= third, chance.uniform(0, 0.08))
    assert run(workplace, "train.py", "tiny_lm.py", "--resume").code == 0
    same(workplace, finished, saved)


NO_ROOM = f"""
import resource, runpy, sys
from transformer_jax.training.checkpoint import Checkpoints

save, largest = Checkpoints.save, int(sys.argv.pop())

def limited(self, state, position):
    if int(state.step) >= 50:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    save(self, state, position)

Checkpoints.save = limited
sys.argv[0] = "train.py"
runpy.run_path({str(SCRIPTS / "train.py")!r}, run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("largest", [0, 20_000])
def test_without_room_for_a_checkpoint_it_stops_and_goes_on_later(
    workplace: Path, finished: Path, run: Any, saved: Any, environment: dict[str, str], largest: int
) -> None:
    """No file may grow beyond so many bytes from the checkpoint of step 50 on: at 0 not even the first is written, at 20,000 the parameters are not."""
    command = [sys.executable, "-c", NO_ROOM, "tiny_lm.py", str(largest)]
    stopped = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True)
    message = stopped.stderr.splitlines()[-1]
    assert stopped.returncode == 1 and message.startswith("train.py: error: the checkpoint of step 50 could not be written to ")
    assert "File too large" in message and message.endswith("; the one of step 40 is as it was: make room and go on with --resume") and len(message) < 500
    assert steps_done(workplace) == 50 and (workplace / TINY / "checkpoints" / "40").exists() and not (workplace / TINY / "checkpoints" / "50").exists()
    if largest:
        assert run(workplace, "train.py", "tiny_lm.py", "--resume").code == 0
        same(workplace, finished, saved)


def kilobytes(folder: Path) -> int:
    """On a disk that gives each file whole pages."""
    return sum(-(-path.stat().st_size // 4096) * 4 for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_on_a_full_disk_it_stops_and_goes_on_later(workplace: Path, finished: Path, run: Any, saved: Any) -> None:
    (workplace / "runs").mkdir()
    # Room for one checkpoint and a half, besides all else: the second one cannot be written, whenever the first is removed.
    whole, checkpoints = (kilobytes(finished / TINY / part) for part in ("", "checkpoints"))
    room = whole - checkpoints + kilobytes(finished / TINY / "checkpoints" / "120") * 3 // 2
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}k", "tmpfs", "runs"], cwd=workplace, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        stopped = run(workplace, "train.py", "tiny_lm.py")
        assert stopped.code == 1
        assert "could not be written" in stopped.err.splitlines()[-1] and "No space left on device" in stopped.err.splitlines()[-1]
        subprocess.run(["mount", "-o", "remount,size=50M", "runs"], cwd=workplace, check=True)
        assert run(workplace, "train.py", "tiny_lm.py", "--resume").code == 0
        same(workplace, finished, saved)
    finally:
        subprocess.run(["umount", "runs"], cwd=workplace, check=True)


@pytest.mark.slow
def test_a_truncated_checkpoint_is_named_with_the_one_that_is_good_and_the_way_there(workplace: Path, finished: Path, run: Any, saved: Any) -> None:
    shutil.copytree(finished / "runs", workplace / "runs")
    newest = workplace / TINY / "checkpoints" / "120"
    before = (workplace / TINY / "metrics.jsonl").read_bytes()
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)

    refused = run(workplace, "train.py", "tiny_lm.py", "--resume")
    message = refused.err.splitlines()[-1]
    assert refused.code == 1 and message.startswith(f"train.py: error: expected a whole checkpoint in {newest}, received one that cannot be read (")
    assert message.endswith(f"remove {newest} to go on from step 110")
    assert (workplace / TINY / "metrics.jsonl").read_bytes() == before
    sampled = run(workplace, "sample.py", str(TINY))
    assert sampled.code == 1 and sampled.err.splitlines()[-1].startswith(f"sample.py: error: expected a whole checkpoint in {newest}")

    shutil.rmtree(newest)
    assert run(workplace, "train.py", "tiny_lm.py", "--resume").code == 0
    same(workplace, finished, saved)
