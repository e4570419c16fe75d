"""Checkpoints: orbax's, with errors that a person can read."""

import os
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import jax
import orbax.checkpoint as ocp

from transformer_jax.training.step import TrainState


class CheckpointError(Exception):
    """A checkpoint that could not be written or read; the message says which, and what is still good."""


class Checkpoints:
    """The last few checkpoints of a run. Each is written aside and renamed when complete.

    Args:
        folder: for the checkpoints alone.
        keep: how many to keep.
        read_only: for a look at a run that may be going on: nothing is made, and what it is writing is not cleaned away.
    """

    def __init__(self, folder: Path, keep: int = 2, *, read_only: bool = False) -> None:
        self.folder = folder.resolve()
        how: dict[str, Any] = {"create": False} if read_only else {"max_to_keep": keep, "cleanup_tmp_directories": True}
        options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False, **how)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    @property
    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, position: dict[str, Any]) -> None:
        """Writes a state and the position in the data.

        Raises:
            CheckpointError: it could not be written; earlier checkpoints are as they were.
        """
        step, before = int(state.step), self.steps
        if step in before:
            return
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(position))
        try:
            self._manager.save(step, args=args)
        except (OSError, ValueError, RuntimeError) as error:
            good = f"the one of step {before[-1]} is as it was: make room and go on with --resume" if before else "there is none before it"
            raise CheckpointError(f"the checkpoint of step {step} could not be written to {self.folder} ({_reason(error)}); {good}") from error

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The last state and its position in the data; None where there is no checkpoint.

        Args:
            like: a state, or its shapes, that says what to expect.

        Raises:
            CheckpointError: it cannot be read.
        """
        if not self.steps:
            return None
        *earlier, step = self.steps
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore())
        try:
            found = self._manager.restore(step, args=args)
        except Exception as error:  # a damaged file shows as an error of any kind, from any of the libraries below
            where = self.folder / str(step)
            way_out = f"unless the config was changed since, remove {where} to " + (f"go on from step {earlier[-1]}" if earlier else "start again")
            raise CheckpointError(f"expected a whole checkpoint in {where}, received one that cannot be read ({_reason(error)}); {way_out}") from error
        return found["state"], found["data"]

    def close(self) -> None:
        self._manager.close()


def _reason(error: Exception) -> str:
    """An error of tensorstore goes on for hundreds of lines, with the operating system's somewhere in them."""
    if found := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(found[1]))
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].partition(". See full TensorStore details")[0][:200]


def exit_at_once(message: str) -> NoReturn:
    """Ends the process with a message on stderr as its last line. Orbax's threads would write hundreds more about the same error while Python ends."""
    sys.stdout.flush()
    sys.stderr.flush()
    stderr = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.write(stderr, f"\n{message}\n".encode())  # a line of its own, whatever a thread was in the middle of
    os._exit(1)
