"""Trains what a config file describes: `python scripts/train.py configs/char_lm.py --d-model 256`; `--help` after the file lists all flags."""

import contextlib
import io
import itertools
import logging
import sys
from dataclasses import dataclass, replace

from transformer_jax.command_line import extract_imports, load
from transformer_jax.training import CheckpointError, Experiment, RunError, initialised, train
from transformer_jax.training.checkpoint import exit_at_once
from transformer_jax.training.start import brought


@dataclass(frozen=True)
class Options:
    """Of this script.

    Attributes:
        init: a folder with a published model to go on from, in place of the recipe's own: config.json, safetensors files and tokenizer.json.
        resume: go on from the last checkpoint in the run's folder.
        backend: of attention, in place of the run's: auto for the first that takes its calls, or the name of one.
    """

    init: str = ""
    resume: bool = False
    backend: str = ""


def main() -> None:
    arguments = extract_imports(sys.argv[1:], prog="train.py")
    if not arguments or arguments[0].startswith("-"):
        usage = "usage: train.py CONFIG [flags]; a config is a file such as configs/char_lm.py or runs/char_lm/config.json, and CONFIG --help lists its flags"
        sys.exit(print(usage) if arguments[:1] in (["-h"], ["--help"]) else usage)
    experiment, options = load(arguments[0], arguments[1:], expected=Experiment, options=Options, prog="train.py")
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs the tracebacks of its threads beside the error that it raises
    try:
        if options.init:
            if idle := _idle(arguments[0], arguments[1:], experiment):
                raise ValueError(f"--init: expected no flags of the model and its tokenizer, which the folder brings along, received {idle}; leave it out")
            experiment = initialised(experiment, options.init)
        if options.backend:
            experiment = replace(experiment, run=replace(experiment.run, backend=options.backend))
        train(experiment, resume=options.resume)
    except CheckpointError as error:
        exit_at_once(f"train.py: error: {error}")
    except (RunError, NotImplementedError, ValueError, OSError) as error:
        sys.exit(f"train.py: error: {error}")


def _idle(source: str, flags: list[str], experiment: Experiment) -> str | None:
    """A flag that changes nothing but what a published model brings along: parameters of a recipe such as --d-model among them."""
    for n, flag in enumerate(flags):
        if flag == "--model" or flag.startswith(("--model.", "--model=", "--data.tokenizer")):
            return flag
        if not flag.startswith("--") or flag.startswith("--init"):
            continue
        values = itertools.takewhile(lambda word: not word.startswith("--"), flags[n + 1 :])
        rest = [*flags[:n], *flags[n + 1 + len(list(values)) :]]
        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                without, _ = load(source, rest, expected=Experiment, options=Options, prog="train.py")
        except SystemExit:  # a parameter without a default
            continue
        if without != experiment and brought(without, experiment) == experiment:
            return flag
    return None


if __name__ == "__main__":
    main()
