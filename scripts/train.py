"""Trains what a config file describes: `python scripts/train.py configs/char_lm.py --d-model 256`; `--help` after the file lists all flags."""

import logging
import sys
from dataclasses import dataclass, replace

from transformer_jax.command_line import extract_imports, load
from transformer_jax.training import CheckpointError, Experiment, RunError, train
from transformer_jax.training.checkpoint import exit_at_once


@dataclass(frozen=True)
class Options:
    """Of this script.

    Attributes:
        resume: go on from the last checkpoint in the run's folder.
        backend: of attention, in place of the run's: auto for the first that takes its calls, or the name of one.
    """

    resume: bool = False
    backend: str = ""


def main() -> None:
    arguments = extract_imports(sys.argv[1:], prog="train.py")
    if not arguments or arguments[0].startswith("-"):
        usage = "usage: train.py CONFIG [flags]; a config is a file such as configs/char_lm.py or runs/char_lm/config.json, and CONFIG --help lists its flags"
        sys.exit(print(usage) if arguments[:1] in (["-h"], ["--help"]) else usage)
    experiment, options = load(arguments[0], arguments[1:], expected=Experiment, options=Options, prog="train.py")
    if options.backend:
        experiment = replace(experiment, run=replace(experiment.run, backend=options.backend))
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs the tracebacks of its threads beside the error that it raises
    try:
        train(experiment, resume=options.resume)
    except CheckpointError as error:
        exit_at_once(f"train.py: error: {error}")
    except (RunError, ValueError, OSError) as error:
        sys.exit(f"train.py: error: {error}")


if __name__ == "__main__":
    main()
