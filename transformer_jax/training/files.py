"""The files of a run's folder, written whole or not at all."""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax


def write_whole(path: Path, text: str) -> None:
    """Writes a file aside and renames it, so that nobody sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def free_folder(folder: str) -> Path:
    """The folder, or with a number after it the first that does not exist: a new run overwrites nothing."""
    path = Path(folder)
    if not path.exists():
        return path
    stem = re.sub(r"-\d+$", "", path.name)
    return next(p for n in range(2, sys.maxsize) if not (p := path.with_name(f"{stem}-{n}")).exists())


def note(seed: int, command: list[str]) -> dict[str, Any]:
    """Versions, device, seed, command and commit."""
    names = ("transformer_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers", "numpy")
    return {
        "command": " ".join(command),
        "commit": _commit(),
        "seed": seed,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in names},
    }


def _commit() -> str | None:
    """That of the checkout which holds this file, with a plus where files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(["git", "describe", "--always", "--dirty=+", "--abbrev=40"], cwd=here, capture_output=True, text=True, timeout=10)
        tracked = subprocess.run(["git", "ls-files", "--error-unmatch", Path(__file__).name], cwd=here, capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == tracked.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


class MetricsFile:
    """metrics.jsonl: one line a step.

    Args:
        path: of the file.
        last_step: lines of later steps, left by a run that was killed, are dropped.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        self.path = path
        kept = [line for line in _lines(path) if line["step"] <= last_step]
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
        self.rows = kept

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Adds lines.

        Raises:
            OSError: naming the file and the way out, as a full disk does not. A line cut short is dropped when the run goes on.
        """
        self.rows.extend(rows)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows))
        except OSError as error:
            way_out = f"could not be written ({error.strerror}); make room, and --resume goes on from the last checkpoint"
            raise OSError(error.errno, way_out, str(self.path)) from None


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break  # the last line of a run that was killed while it wrote
        if not isinstance(row, dict) or "step" not in row:
            break
        rows.append(row)
    return rows
