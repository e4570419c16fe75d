"""What a person sees while a run goes on."""

import sys
import time
from types import TracebackType
from typing import Any, Self

import rich.console
import rich.progress


class Progress:
    """A bar with step, loss, tokens/s and time left, and a line at each evaluation; without a terminal only the lines.

    Args:
        steps: of the whole run.
        done: steps of it that were made before.
        tokens_per_step: for the speed.
    """

    def __init__(self, steps: int, done: int, *, tokens_per_step: int) -> None:
        columns = (
            rich.progress.TextColumn("step {task.completed}/{task.total}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tokens/s"),
            rich.progress.TimeRemainingColumn(compact=True),
        )
        terminal = sys.stdout.isatty()
        self._console = rich.console.Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._bar = rich.progress.Progress(*columns, console=self._console, disable=not terminal, speed_estimate_period=10)
        self._task = self._bar.add_task("", total=steps, completed=done, loss="-", speed="-")
        self._tokens, self._steps = tokens_per_step, steps
        self._since, self._from = time.monotonic(), done

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def line(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(text, markup=False)

    def update(self, rows: list[dict[str, Any]]) -> None:
        """The metrics of the latest steps, one row each."""
        now, last = time.monotonic(), rows[-1]
        speed = f"{(last['step'] - self._from) * self._tokens / (now - self._since):,.0f}"
        self._bar.update(self._task, completed=last["step"], loss=f"{last['loss']:.3f}", speed=speed)
        if "held_out_loss" in last:
            self.line(f"step {last['step']}/{self._steps}  loss {last['loss']:.4f}  held out {last['held_out_loss']:.4f}  {speed} tokens/s")
            self._since, self._from = time.monotonic(), last["step"]
