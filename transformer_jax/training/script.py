"""How scripts that look at a run start and end."""

import sys
from collections.abc import Callable

import tyro

from transformer_jax.command_line import extract_imports
from transformer_jax.training.checkpoint import CheckpointError, exit_at_once
from transformer_jax.training.loop import RunError


def run_script(main: Callable[..., None], *, prog: str) -> None:
    """Calls a script's `main` with the command line's flags, after each `--import FILE|MODULE`. What a user can cause is said in one line; the status is 1."""
    arguments = extract_imports(sys.argv[1:], prog=prog)
    try:
        tyro.cli(main, prog=prog, args=arguments)
    except CheckpointError as error:
        exit_at_once(f"{prog}: error: {error}")
    except (NotImplementedError, ValueError, OSError, RunError) as error:
        sys.exit(f"{prog}: error: {error}")
